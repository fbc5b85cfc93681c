# SPDX-License-Identifier: BSD-3-Clause
"""What the RPC suites share: requests as they go over the wire, and the checks of answers."""
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / 'lib'))
import spindle  # noqa: E402

MIB = 1 << 20
WRONG_STATE_EARLY = ('Method may only be called after framework is initialized using '
                     'framework_start_init RPC.')
WRONG_STATE_LATE = ('Method may only be called before framework is initialized. Use '
                    '--wait-for-rpc command line parameter and then issue this RPC before the '
                    'framework_start_init RPC.')


def request(method, params=None, id=1):
    r = {'jsonrpc': '2.0', 'id': id, 'method': method}
    if params is not None:
        r['params'] = params
    return r


class RpcCase(spindle.TestCase):
    def ask(self, target, data, timeout=5):
        """Sends data on a connection of its own and returns the one answer."""
        with target.raw(timeout) as c:
            c.send(data)
            return c.recv()

    def error_of(self, target, data):
        answer = self.ask(target, data)
        self.assertIn('error', answer)
        self.assertEqual(answer['jsonrpc'], '2.0')
        return answer['error']

    def check_error(self, target, method, params, code, message, data=None):
        """code and message exactly; every string of data somewhere in error.data."""
        error = self.error_of(target, request(method, params))
        self.assertEqual((error['code'], error['message']), (code, message), error)
        for text in [data] if isinstance(data, str) else data or []:
            self.assertIn(text, error.get('data', ''))
        return error

    def alive(self, target):
        self.assertEqual(target.rpc('log_get_level'), 'NOTICE')

    def image(self, target, size=4 * MIB, name='disk.img'):
        path = target.path(name)
        with open(path, 'wb') as f:
            f.truncate(size)
        return path
