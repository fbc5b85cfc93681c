# SPDX-License-Identifier: BSD-3-Clause
# One flat Makefile. `make help` lists the targets and the switches.

VERSION := $(shell sed -n 's/^#define SPINDLE_VERSION "\(.*\)"/\1/p' reactor/base.h)
PREFIX ?= /usr/local
PYTHON ?= /usr/bin/python3
comma := ,

# A sanitizer build keeps to a directory of its own.
BUILD := build$(if $(SAN),/$(subst $(comma),-,$(SAN)))

CSTD := -std=gnu11 -D_GNU_SOURCE -I.
WARN := -Wall -Wextra -Wshadow -Wvla -Wundef -Wpointer-arith -Wcast-qual -Wwrite-strings \
	-Wstrict-prototypes -Wmissing-prototypes -Wredundant-decls -Wformat=2 \
	-Wimplicit-fallthrough -Wconversion -Wno-sign-conversion
CLANG := $(findstring clang,$(shell $(CC) --version 2>/dev/null | head -1))
ifneq ($(CLANG),)
WARN += -Wthread-safety -Wshorten-64-to-32
endif
ifeq ($(WERROR),1)
WARN += -Werror
endif

HARDEN := -fstack-protector-strong -fPIE
HARDEN_LD := -pie -Wl,-z,relro,-z,now
ifeq ($(SAN),)
ifeq ($(DEBUG),1)
OPT := -O0 -g3
else
OPT := -O2 -g -DNDEBUG
HARDEN += -D_FORTIFY_SOURCE=2
# The target alone is optimized as a whole (10 % more IOPS on null): its objects hold
# both kinds of code, and tests link the plain one, which takes no time.
ifeq ($(CLANG),)
LTO := -flto=auto
NO_LTO := -fno-lto
endif
endif
else
# Sanitizers want frames and asserts; only they tell about races and overruns.
OPT := -O1 -g -fno-omit-frame-pointer -fsanitize=$(SAN)
ifneq ($(findstring undefined,$(SAN)),)
OPT += -fno-sanitize-recover=undefined
endif
LDFLAGS += -fsanitize=$(SAN)
endif

CFLAGS_ALL = $(CSTD) $(OPT) $(HARDEN) $(WARN) -MMD -MP $(CFLAGS)
LIBS := -luring -ljson-c -lnuma -lpthread -lm

# Ceph RBD; RBD=0 builds without it. Its libraries are loaded at run time: bdev/bdev_rbd_lib.h.
RBD ?= 1
ifeq ($(RBD),0)
CSTD += -DSPINDLE_RBD=0
else
CSTD += -DSPINDLE_RBD=1
LIBS += -ldl
endif

CORE_SRC := $(wildcard reactor/*.c hugepages/*.c bdev/*.c vhost/*.c)
RPC_SRC := $(wildcard rpc/*.c)
ifeq ($(RBD),0)
CORE_SRC := $(filter-out bdev/bdev_rbd%,$(CORE_SRC))
RPC_SRC := $(filter-out rpc/rpc_rbd.c,$(RPC_SRC))
endif
OBJ := $(patsubst %.c,$(BUILD)/obj/%.o,main.c $(RPC_SRC) $(CORE_SRC))
CORE_OBJ := $(patsubst %.c,$(BUILD)/obj/%.o,$(CORE_SRC) $(RPC_SRC))

FE_SRC := $(wildcard test/frontend/*.c)
FE_OBJ := $(patsubst %.c,$(BUILD)/obj/%.o,$(FE_SRC))
UNIT_SRC := $(filter-out test/unit/harness.c,$(wildcard test/unit/test_*.c))
UNIT_BIN := $(patsubst test/unit/%.c,$(BUILD)/test/unit/%,$(UNIT_SRC))
FUZZ_SRC := $(wildcard test/fuzz/fuzz_*.c)
FUZZ_BIN := $(patsubst test/fuzz/%.c,$(BUILD)/test/fuzz/%,$(FUZZ_SRC))

Q := $(if $(V),,@)
say = $(if $(V),,@printf '  %-5s %s\n' '$(1)' '$(2)')

all: $(BUILD)/bin/vhost

help:
	@echo 'make [target] [V=1] [DEBUG=1] [SAN=address|undefined|thread] [RBD=0] [CC=gcc|clang] [WERROR=1]'
	@echo '  all               $(BUILD)/bin/vhost (default)'
	@echo '  check             all test suites below'
	@echo '  check-unit        cmocka tests of each part'
	@echo '  check-functional  the real binary, driven over RPC and by a front end of our own'
	@echo '  check-guest       a real guest in QEMU'
	@echo '  check-ceph        RBD on a one-node cluster on loopback'
	@echo '  check-fuzz        replay of the fuzzing corpora'
	@echo '  fuzz              fuzz for FUZZ_SECONDS (60) each, needs clang'
	@echo '  bench             IOPS and latency beside fio and qemu-storage-daemon (5 minutes);'
	@echo '                    also as $(BUILD)/bench.json and bench.svg. bench-quick: rougher'
	@echo '  fio               $(BUILD)/fio/vhost_user_blk.so, an I/O engine that lets fio drive the target'
	@echo '  lint              layers, clang-tidy, cppcheck'
	@echo '  format            clang-format on what differs'
	@echo '  install           to DESTDIR, PREFIX ($(PREFIX))'
	@echo '  clean             remove $(BUILD)'

$(BUILD)/bin/vhost: $(OBJ)
	@mkdir -p $(@D)
	$(call say,LINK,$@)
	$(Q)$(CC) $(if $(LTO),$(LTO) -O2 -g) $(HARDEN_LD) $(LDFLAGS) -o $@ $(OBJ) $(LIBS)

$(BUILD)/obj/%.o: %.c Makefile
	@mkdir -p $(@D)
	$(call say,CC,$<)
	$(Q)$(CC) $(CFLAGS_ALL) $(if $(filter $@,$(OBJ)),$(if $(LTO),$(LTO) -ffat-lto-objects)) -c -o $@ $<

# The front end is also loaded by Python, so its objects are position independent.
$(FE_OBJ): HARDEN := -fstack-protector-strong -fPIC
$(BUILD)/test/libfrontend.a: $(FE_OBJ)
	@mkdir -p $(@D)
	$(call say,AR,$@)
	$(Q)rm -f $@ && $(AR) rcs $@ $(FE_OBJ)
$(BUILD)/test/libfrontend.so: $(FE_OBJ)
	@mkdir -p $(@D)
	$(call say,LINK,$@)
	$(Q)$(CC) -shared $(NO_LTO) $(LDFLAGS) -o $@ $(FE_OBJ) -lpthread

BENCH_OBJ := $(patsubst %,$(BUILD)/obj/test/bench/%.o,bench gaps limit ping result setup)
$(BUILD)/test/bench: $(BENCH_OBJ) $(BUILD)/test/libfrontend.a
	@mkdir -p $(@D)
	$(call say,LINK,$@)
	$(Q)$(CC) $(NO_LTO) $(HARDEN_LD) $(LDFLAGS) -o $@ $^ -lpthread

# fio's engine needs the source of the very fio that is installed; see test/fio/fetch.sh. Never a
# sanitized one: fio loads it.
FIO_DIR := $(BUILD)/fio
FIO_SRC ?= $(FIO_DIR)/source
FIO_OBJ := $(patsubst test/fio/%.c,$(FIO_DIR)/%.o,$(wildcard test/fio/*.c))
FIO_CFLAGS = -fPIC -fvisibility=hidden -isystem $(FIO_SRC) -include $(FIO_SRC)/config-host.h \
	-DCONFIG_DYNAMIC_ENGINES -DENGINE_FIO_VERSION='"$(shell cat $(FIO_SRC)/spindle-version 2>/dev/null)"'
ifeq ($(SAN),)
fio: $(FIO_DIR)/vhost_user_blk.so
else
fio:
	@$(MAKE) --no-print-directory SAN= fio
endif
$(FIO_SRC)/spindle-version: FORCE
	@test/fio/fetch.sh $(FIO_SRC)
$(FIO_OBJ): $(FIO_DIR)/%.o: test/fio/%.c Makefile $(FIO_SRC)/spindle-version
	@mkdir -p $(@D)
	$(call say,CC,$<)
	$(Q)$(CC) $(CFLAGS_ALL) $(FIO_CFLAGS) -c -o $@ $<
$(FIO_DIR)/vhost_user_blk.so: $(FIO_OBJ) $(BUILD)/test/libfrontend.a
	$(call say,LINK,$@)
	$(Q)$(CC) -shared $(NO_LTO) $(LDFLAGS) -Wl,--exclude-libs,ALL -o $@ $^ -lpthread

# Unit tests link the whole project but main.c; allocation goes through a wrapper
# so that a test can make the n-th call fail.
UNIT_WRAP := -Wl,--wrap=malloc,--wrap=calloc,--wrap=realloc,--wrap=aligned_alloc
$(BUILD)/test/unit/%: $(BUILD)/obj/test/unit/%.o $(BUILD)/obj/test/unit/harness.o \
		$(CORE_OBJ) $(BUILD)/test/libfrontend.a
	@mkdir -p $(@D)
	$(call say,LINK,$@)
	$(Q)$(CC) $(NO_LTO) $(HARDEN_LD) $(LDFLAGS) $(UNIT_WRAP) -o $@ $^ -lcmocka $(LIBS)

# Fuzzers: with clang and FUZZ=1 libFuzzer itself, else a main that replays a corpus.
FUZZ_LIB := $(if $(FUZZ),-fsanitize=fuzzer,)
$(BUILD)/test/fuzz/%: $(BUILD)/obj/test/fuzz/%.o $(if $(FUZZ),,$(BUILD)/obj/test/fuzz/replay.o) $(CORE_OBJ)
	@mkdir -p $(@D)
	$(call say,LINK,$@)
	$(Q)$(CC) $(NO_LTO) $(HARDEN_LD) $(LDFLAGS) $(FUZZ_LIB) -o $@ $^ $(LIBS)

tests: all $(UNIT_BIN) $(FUZZ_BIN) $(BUILD)/test/libfrontend.a $(BUILD)/test/bench \
	build/test/libfrontend.so

# Python loads the front end, so that one is never a sanitized one.
ifneq ($(SAN),)
build/test/libfrontend.so: FORCE
	@$(MAKE) --no-print-directory SAN= $@
endif
FORCE:

check: tests
	@BUILD=$(BUILD) test/run.sh unit functional guest fuzz ceph
check-unit check-functional check-guest check-fuzz check-ceph: check-%: tests
	@BUILD=$(BUILD) test/run.sh $*

fuzz:
	@$(MAKE) --no-print-directory CC=clang FUZZ=1 SAN=address,undefined \
		CFLAGS='$(CFLAGS) -fsanitize=fuzzer-no-link' BUILD=build/fuzz fuzz-run
fuzz-run: $(FUZZ_BIN)
	@test/fuzz/run.sh $(BUILD) $(or $(FUZZ_SECONDS),60)

bench bench-quick: all $(BUILD)/test/bench
	@BUILD=$(BUILD) $(PYTHON) test/bench/run.py --json $(BUILD)/bench.json --svg $(BUILD)/bench.svg \
		$(if $(filter bench-quick,$@),--rounds 3 --runtime 0.4) $(BENCH_ARGS)

lint:
	@scripts/check-layers.sh
	@scripts/lint.sh

format:
	clang-format -i $(shell git ls-files '*.c' '*.h')

install: all
	install -D -m 0755 $(BUILD)/bin/vhost $(DESTDIR)$(PREFIX)/sbin/spindle-vhost
	install -D -m 0755 scripts/rpc.py $(DESTDIR)$(PREFIX)/bin/spindle-rpc
	install -D -m 0755 scripts/setup.sh $(DESTDIR)$(PREFIX)/sbin/spindle-setup
	install -d $(DESTDIR)$(PREFIX)/lib/systemd/system
	sed 's,/usr/local,$(PREFIX),' scripts/spindle.service \
		> $(DESTDIR)$(PREFIX)/lib/systemd/system/spindle.service
	install -d $(DESTDIR)$(PREFIX)/share/doc/spindle
	install -m 0644 README.md LICENSE docs/*.md docs/*.svg $(DESTDIR)$(PREFIX)/share/doc/spindle

clean:
	rm -rf $(BUILD)

version:
	@echo $(VERSION)

.PHONY: all help tests check check-unit check-functional check-guest check-fuzz check-ceph fuzz fuzz-run \
	bench bench-quick fio lint format install clean version FORCE
.SECONDARY:

-include $(shell find $(BUILD)/obj -name '*.d' 2>/dev/null) $(wildcard $(BUILD)/fio/*.d)
