#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Guest memory: what it may lie on, regions of any shape, requests that cross them, regions that
come and go while rings run, and a front end that takes its memory away."""
import os
import random
import struct
import time

from vhostcase import F, MIB, WAIT, VhostCase, fd_count, need_huge_pages, pattern, spindle

PAGE = 4096


class Backings(VhostCase):
    def use(self, **opts):
        t = self.target()
        fe = self.connect(self.disk(t), queues=2, **opts)
        for i in range(8):
            self.check_io(fe, q=i % 2, seed=i, length=65536)
        fe.destroy()
        self.wait_sessions(t, 0)

    def test_memfd(self):
        self.use(mem_size=8 * MIB)
        self.use(mem_size=8 * MIB, mem_table=True)

    def test_huge_memfd(self):
        need_huge_pages(40)
        self.use(mem_size=8 * MIB, backing='huge')

    def test_hugetlbfs(self):
        need_huge_pages(40)
        if not os.path.ismount('/dev/hugepages'):
            self.skipTest('/dev/hugepages is not mounted')
        self.use(mem_size=8 * MIB, backing='file', dir='/dev/hugepages')

    def test_file_on_disk(self):
        self.use(mem_size=8 * MIB, backing='file', dir=self.temp_dir())

    def test_shm(self):
        self.use(mem_size=8 * MIB, backing='file', dir='/dev/shm')

    def test_much_memory_costs_nothing(self):
        # 1 TiB, hardly any of it touched: no MAP_POPULATE, nothing per page. Sanitizers leave
        # less room for addresses.
        size = 1 << 34 if spindle.SANITIZER else 1 << 40
        t = self.target()
        fe = self.connect(self.disk(t), regions=[
            F.region(0, 64 * MIB), F.region(1 << 32, size)])
        far = (1 << 32) + size // 2 + 123
        fe.q[0].submit(F.T_IN, 0, [(far, 512)])
        self.assertEqual(fe.q[0].wait_all(1, WAIT)[0].status, F.S_OK)


class Shapes(VhostCase):
    def test_mmap_offsets(self):
        # User-Mode Linux: regions at odd places of one file.
        t = self.target()
        path = self.disk(t)
        for offset in (PAGE, 3 * PAGE, 5 * PAGE + 512, 0x1238, 12345 * 16):
            with self.subTest(offset=offset):
                fe = self.connect(path, data_region=1, ring_region=0, mem_table=offset == PAGE,
                                  regions=[F.region(0, 4 * MIB, mmap_offset=2 * PAGE),
                                           F.region(1 << 30, 2 * MIB, mmap_offset=offset)])
                self.check_io(fe, length=128 * 1024, seed=offset)
                fe.destroy()

    def test_unaligned_rings(self):
        # A region that begins in mid-page: the rings are aligned for the guest, not for us.
        t = self.target()
        fe = self.connect(self.disk(t), ring_region=0, regions=[
            F.region(0, 4 * MIB, mmap_offset=PAGE + 16), F.region(1 << 30, 4 * MIB)])
        self.check_io(fe)

    def test_regions_of_one_file(self):
        t = self.target()
        fe = self.connect(self.disk(t), data_region=1, ring_region=0, regions=[
            F.region(0, 2 * MIB, mmap_offset=8 * MIB),
            F.region(1 << 32, 4 * MIB, backing='share', share=0, mmap_offset=MIB)])
        self.check_io(fe, length=MIB)

    def test_addresses_at_the_top(self):
        t = self.target()
        high = (1 << 64) - 8 * MIB
        fe = self.connect(self.disk(t), data_region=1, ring_region=0, regions=[
            F.region(0, 4 * MIB), F.region(high, 4 * MIB)])
        self.check_io(fe, length=MIB)

    def adjacent(self, t, count, size=PAGE, **opts):
        """Small regions side by side from 1 GiB on, each on a file of its own."""
        base = 1 << 30
        return base, self.connect(
            t.path('c0'), ring_region=0,
            regions=[F.region(0, 8 * MIB)]
            + [F.region(base + i * size, size) for i in range(count)], **opts)

    def test_buffers_across_regions(self):
        t = self.target()
        self.disk(t)
        for how in (F.HOW_DIRECT, F.HOW_INDIRECT):
            base, fe = self.adjacent(t, 40, indirect=True)
            length = 39 * PAGE
            data = pattern(length, seed=how)
            fe.mem_write(base + 512, data)
            q = fe.q[0]
            # One segment over 40 regions; several that cross one border each; back likewise.
            q.submit(F.T_OUT, 0, [(base + 512, length)], how=how)
            self.assertEqual(q.wait_all(1, WAIT)[0].status, F.S_OK)
            fe.mem_write(base, bytes(40 * PAGE))
            segs = [(base + 512 + at, min(PAGE + 1024, length - at))
                    for at in range(0, length, PAGE + 1024)]
            q.submit(F.T_IN, 0, segs, how=how)
            done = q.wait_all(1, WAIT)[0]
            self.assertEqual((done.status, done.len), (F.S_OK, length + 1))
            self.assertEqual(fe.mem_read(base + 512, length), data)
            self.assertEqual(fe.read(0, length), data)
            fe.destroy()

    def test_header_across_regions(self):
        t = self.target()
        self.disk(t)
        base, fe = self.adjacent(t, 4)
        data = fe.alloc(1024, 512, region=0)
        fe.write(3, b'h' * 512)
        for cut in range(1, 16):
            header = base + PAGE - cut
            fe.mem_write(header, struct.pack('<IIQ', F.T_IN, 0, 3))
            status = base + 2 * PAGE + cut
            fe.q[0].submit_chain([(header, 16, False), (data, 512, True), (status, 1, True)],
                                 status_gpa=status)
            self.assertEqual(fe.q[0].wait_all(1, WAIT)[0].status, F.S_OK)
            self.assertEqual(fe.mem_read(data, 512), b'h' * 512)
            fe.mem_write(data, bytes(512))

    def test_status_alone_in_the_next_region(self):
        t = self.target()
        self.disk(t)
        base, fe = self.adjacent(t, 2)
        fe.write(0, b's' * 512)
        q = fe.q[0]
        q.submit(F.T_IN, 0, [(base + PAGE - 512, 512)], how=F.HOW_STATUS_TAIL)
        done = q.wait_all(1, WAIT)[0]
        self.assertEqual((done.status, done.len), (F.S_OK, 513))
        self.assertEqual(fe.mem_read(base + PAGE - 512, 513), b's' * 512 + b'\0')

    def test_indirect_table_across_regions(self):
        t = self.target()
        self.disk(t)
        base, fe = self.adjacent(t, 20, indirect=True)
        gpa = fe.alloc(400 * 512, 512, region=0)
        rng = random.Random(1)
        for table in (base + PAGE - 16, base + PAGE - 8, base + 16, base + PAGE - 24, base + 3):
            num = 300
            segs = [(gpa + i * 512, 512) for i in range(num)]
            seed = rng.randrange(1000)
            fe.mem_write(gpa, pattern(num * 512, seed))
            header = fe.q[0].scratch_gpa
            status = header + 32
            fe.mem_write(header, struct.pack('<IIQ', F.T_OUT, 0, 7))
            fe.q[0].submit_chain([(header, 16, False)] + [s + (False,) for s in segs]
                                 + [(status, 1, True)], table_gpa=table, status_gpa=status,
                                 how=F.HOW_INDIRECT)
            self.assertEqual(fe.q[0].wait_all(1, WAIT)[0].status, F.S_OK)
            self.assertEqual(fe.read(7, num * 512), pattern(num * 512, seed))

    def test_hole_between_regions(self):
        t = self.target()
        self.disk(t)
        fe = self.connect(t.path('c0'), ring_region=0, style='qemu11', regions=[
            F.region(0, 4 * MIB), F.region(1 << 30, PAGE), F.region((1 << 30) + 2 * PAGE, PAGE)])
        fe.q[0].submit(F.T_IN, 0, [((1 << 30) + PAGE - 512, 1024)])
        self.assertEqual(fe.q[0].error(WAIT), 1)
        fe.q[0].stop()
        fe.q[0].reset()
        fe.q[0].start(0)
        self.check_io(fe)

    def test_as_many_regions_as_offered(self):
        t = self.target()
        fe = self.connect(self.disk(t), queue_size=16, mem_size=2 * MIB)
        slots = fe.c.max_mem_slots
        for i in range(1, slots):
            fe.add_region(F.region((1 << 32) + i * PAGE, PAGE))
        last = (1 << 32) + (slots - 1) * PAGE
        fe.q[0].submit(F.T_IN, 0, [(last, 512), ((1 << 32) + PAGE, 512)])
        self.assertEqual(fe.q[0].wait_all(1, WAIT)[0].status, F.S_OK)
        self.check_refused(fe.add_region, F.region(1 << 40, PAGE))


class WhileRunning(VhostCase):
    def test_added_and_removed_under_load(self):
        t = self.target('0x3')
        self.delay(t, self.malloc(t), 300)
        fe = self.connect(self.ctrlr(t, 'c0', 'D_m0'), queues=2, queue_size=256)
        data = pattern(MIB // 2)
        fe.write(0, data, timeout=WAIT)
        gpa = fe.alloc(4096 * 64, 4096)
        before = fd_count(t)
        for i in range(40):
            for j in range(40):
                fe.q[j % 2].submit(F.T_IN, j, [(gpa + 4096 * j, 4096)])
            new = (1 << 32) + (i % 5) * MIB
            number = fe.add_region(F.region(new, MIB))
            fe.q[i % 2].submit(F.T_IN, 0, [(new, MIB // 2)])
            for j in range(20):
                fe.q[j % 2].submit(F.T_IN, 0, [(gpa + 4096 * (40 + j), 4096)])
            done = [d for q in fe.q for d in q.wait_all(q.in_flight, WAIT)]
            self.assertEqual([d.status for d in done], [F.S_OK] * 61)
            self.assertEqual(fe.mem_read(new, MIB // 2), data)
            for j in range(40):
                self.assertEqual(fe.mem_read(gpa + 4096 * j, 4096), data[512 * j:512 * j + 4096])
                fe.q[j % 2].submit(F.T_IN, j, [(gpa + 4096 * j, 4096)])
            fe.remove_region(number)
            done = [d for q in fe.q for d in q.wait_all(q.in_flight, WAIT)]
            self.assertEqual([d.status for d in done], [F.S_OK] * 40)
        self.check_fds(t, before)

    def test_a_thousand_changes(self):
        t = self.target('0x3')
        fe = self.connect(self.disk(t), queues=2)
        data = pattern(4096)
        fe.write(0, data, timeout=WAIT)
        gpa = fe.alloc(4096 * 8, 4096)
        before, worst = fd_count(t), 0.0

        def load():
            for j in range(8):
                fe.q[j % 2].submit(F.T_IN, 0, [(gpa + 4096 * j, 4096)])

        def take(count):
            done = [d for q in fe.q for d in q.wait_all(q.in_flight, WAIT)]
            self.assertEqual([d.status for d in done], [F.S_OK] * count)

        for i in range(1000):
            began = time.monotonic()
            load()
            if i % 2:
                fe.remove_region(number)
            else:
                number = fe.add_region(F.region((1 << 32) + i * MIB, MIB))
            load()
            take(16)
            worst = max(worst, time.monotonic() - began)
        self.assertEqual(fe.mem_read(gpa, 4096), data)
        print(f'     a change and 16 requests beside it: at most '
              f'{worst * 1000:.1f} ms', flush=True)
        self.check_fds(t, before)

    def test_table_replaced_under_load(self):
        t = self.target('0x3')
        self.delay(t, self.malloc(t), 300)
        fe = self.connect(self.ctrlr(t, 'c0', 'D_m0'), queues=2, mem_table=True, queue_size=256)
        data = pattern(MIB // 2)
        fe.write(0, data, timeout=WAIT)
        gpa = fe.alloc(4096 * 64, 4096)
        before = fd_count(t)
        for i in range(30):
            for j in range(40):
                fe.q[j % 2].submit(F.T_IN, j, [(gpa + 4096 * j, 4096)])
            new = (1 << 32) + (i % 3) * MIB
            number = fe.add_region(F.region(new, MIB), tell=False)
            fe.set_mem_table()
            fe.q[i % 2].submit(F.T_IN, 0, [(new, MIB // 2)])
            done = [d for q in fe.q for d in q.wait_all(q.in_flight, WAIT)]
            self.assertEqual([d.status for d in done], [F.S_OK] * 41)
            self.assertEqual(fe.mem_read(new, MIB // 2), data)
            fe.remove_region(number, tell=False)
            fe.set_mem_table()
        self.check_io(fe, q=1)
        self.check_fds(t, before)

    def test_removed_region_is_written_no_more(self):
        # The answer waits for the requests that use the region.
        t = self.target()
        self.delay(t, self.malloc(t), 100000)
        fe = self.connect(self.ctrlr(t, 'c0', 'D_m0'))
        number = fe.add_region(F.region(1 << 32, MIB))
        fe.q[0].submit(F.T_IN, 0, [(1 << 32, MIB)])
        spindle.wait_until(lambda: self.sessions(t)[0]['inflight_task_cnt'] == 1, 2, 'in flight')
        fe.rem_mem_reg(number)
        self.assertEqual([d.status for d in fe.q[0].poll()], [F.S_OK])
        fe.mem_write(1 << 32, b'\xaa' * 4096)
        self.assertEqual(fe.mem_read(1 << 32, 4096), b'\xaa' * 4096)
        # It is gone: to name it now is an address outside the memory.
        fe.q[0].submit(F.T_IN, 0, [(1 << 32, 512)])
        self.assertEqual(fe.q[0].error(WAIT), 1)

    def test_all_memory_removed_and_given_again(self):
        t = self.target()
        fe = self.connect(self.disk(t), style='qemu11')
        self.check_io(fe)
        fe.rem_mem_reg(0, with_fd=True)
        fe.add_mem_reg(0)
        self.check_io(fe)
        self.assertEqual(fe.q[0].error(0.02), 0)

    def test_region_refused(self):
        t = self.target()
        for spec in (F.region(MIB, MIB), F.region(0, 128 * MIB)):      # both overlap
            fe = self.connect(t.path('c0') if t.rpc('vhost_get_controllers') else self.disk(t))
            self.check_refused(fe.add_region, spec)
            fe.destroy()
        fe = self.connect(t.path('c0'))
        fe.send_raw(F.REM_MEM_REG, struct.pack('<QQQQQ', 0, 1 << 40, MIB, 1 << 40, 0),
                    flags=F.VERSION | F.NEED_REPLY)
        self.assertEqual(fe.recv().payload, struct.pack('<Q', 1))
        self.check_closed(fe)


class TakenAway(VhostCase):
    """ftruncate() of memory that the target has mapped: SIGBUS there."""

    def lose(self, number, make_disk, **opts):
        t = self.target('0x3')
        path = make_disk(t)
        other = self.connect(self.disk(t, 'c1', 'm1'), queues=2)
        same = self.connect(path)
        fe = self.connect(path, queues=2, **opts)
        self.check_io(fe)
        gpa = None
        if number:
            gpa = fe.alloc(MIB, 4096, region=number)
            fe.q[0].submit(F.T_OUT, 0, [(gpa, MIB)], how=F.HOW_NO_PUBLISH)
        os.ftruncate(fe.region_fd(number), 0)
        if number:
            fe.q[0].publish()
            fe.q[0].kick()
        return t, fe, (other, same)

    def check_lost(self, t, fe, others):
        self.check_closed(fe)
        self.wait_sessions(t, 1)
        t.wait_log('took away memory')
        # Not where a request of the lost session may still be writing.
        for other in others:
            self.check_io(other, sector=8 * MIB // 512, seed=9)
        self.assertTrue(t.running())
        again = self.connect(t.path('c0'))
        self.check_io(again, sector=8 * MIB // 512)

    def test_rings(self):
        self.check_lost(*self.lose(0, self.disk))

    def test_data_on_malloc(self):
        self.check_lost(*self.lose(1, self.disk, ring_region=0, data_region=0, regions=[
            F.region(0, 8 * MIB), F.region(1 << 32, 2 * MIB)]))

    def test_data_on_a_file(self):
        # The kernel finds out, not we: the request fails and that is all.
        t, fe, others = self.lose(1, lambda t: self.ctrlr(t, 'c0', self.file(t)), ring_region=0,
                                  data_region=0, regions=[F.region(0, 8 * MIB),
                                                          F.region(1 << 32, 2 * MIB)])
        if not fe.closed(0.3):
            self.assertEqual([d.status for d in fe.q[0].wait_all(1, WAIT)], [F.S_IOERR])
            self.check_io(fe, q=1)
        for other in others:
            self.check_io(other, seed=9)

    def test_again_and_again(self):
        t = self.target()
        path = self.disk(t)
        keeper = self.connect(path)
        self.check_io(keeper)
        before = fd_count(t)
        for _ in range(20):
            fe = self.connect(path)
            self.check_io(fe)
            os.ftruncate(fe.region_fd(0), 0)
            self.check_closed(fe)
            fe.destroy()
        self.check_io(keeper)
        self.wait_sessions(t, 1)
        self.check_fds(t, before)

    def test_truncated_before_it_is_shared(self):
        t = self.target()
        fe = self.connect(self.disk(t), no_start=True)
        fe.negotiate()
        os.ftruncate(fe.region_fd(0), 0)
        self.check_refused(fe.add_mem_reg, 0)

    def test_huge_pages_taken_away(self):
        need_huge_pages(40)
        t = self.target()
        path = self.disk(t)
        other = self.connect(path)
        fe = self.connect(path, mem_size=8 * MIB, backing='huge')
        self.check_io(fe)
        os.ftruncate(fe.region_fd(0), 0)
        self.check_closed(fe)
        self.check_io(other)


if __name__ == '__main__':
    spindle.run_tests()
