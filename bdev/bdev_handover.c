/* TEMP */
#include "bdev/bdev.h"
int bdev_handover(struct bdev *bdev, int fds[BDEV_HANDOVER_FDS]) { (void)bdev; (void)fds; return 0; }
int bdev_adopt_offer(const char *name, const int *fds, unsigned int count) { (void)name; (void)fds; (void)count; return 0; }
void bdev_adopt_clear(void) {}
