"""A clock of its own for one program and what it starts, which a test may set while they run.

A library that is loaded before all others adds a number to what the system says the time is; the
number is in a file that they share. Time that has passed is left alone, as it is on a machine whose
clock is set.
"""

import shutil
import struct
import subprocess
from pathlib import Path

_SOURCE = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const volatile int *seconds;

static int offset(void) {
    if (!seconds) {
        const char *path = getenv("MEDFED_TEST_CLOCK");
        int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
        void *map = mmap(NULL, sizeof(int), PROT_READ, MAP_SHARED, file, 0);
        if (map == MAP_FAILED)
            abort();
        seconds = map;
        close(file);
    }
    return *seconds;
}

int clock_gettime(clockid_t clock, struct timespec *time) {
    int failed = syscall(SYS_clock_gettime, clock, time);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        time->tv_sec += offset();
    return failed;
}

int gettimeofday(struct timeval *restrict time, void *restrict zone) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    time->tv_sec = now.tv_sec;
    time->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *at) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (at)
        *at = now.tv_sec;
    return now.tv_sec;
}
"""


def why_not() -> str:
    """Return why no such clock can be made here; empty if it can."""
    return "" if shutil.which("cc") else "a skewed clock needs a C compiler (cc)"


class SkewedClock:
    """Such a clock, right at first.

    Args:
        folder: Gets the library and the file.

    Attributes:
        environment: What a program that is to have this clock needs in its environment.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        source, library = folder / "clock.c", folder / "clock.so"
        source.write_text(_SOURCE)
        command = ["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(source)]
        subprocess.run(command, check=True, capture_output=True)
        self._file = folder / "seconds"
        self.environment = {"LD_PRELOAD": str(library), "MEDFED_TEST_CLOCK": str(self._file)}
        self._file.write_bytes(struct.pack("i", 0))

    def set_ahead(self, seconds: int) -> None:
        """Set it so far ahead of the true time; behind if negative."""
        with self._file.open("r+b") as file:
            file.write(struct.pack("i", seconds))
