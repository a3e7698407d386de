"""A real file system of a few megabytes, files that fill it, and folders that processes cannot write to, find stale, or wait for."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest


class SmallDisk:
    """A tmpfs at ``path``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._ballast = path / "ballast"

    def fill(self) -> None:
        """Takes what is free, to the last byte."""
        with open(self._ballast, "ab", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(1 << 12))

    def kept_full(self, condition: Callable[[], Any]) -> Callable[[], Any]:
        """``condition``, asked on a full disk: what the run itself frees is taken too."""

        def asked() -> Any:
            self.fill()
            return condition()

        return asked

    def read_only(self, value: bool) -> None:
        """What a kernel does after an I/O error, and what undoes it."""
        subprocess.run(["mount", "-o", f"remount,{'ro' if value else 'rw'}", str(self.path)], check=True)

    def free(self) -> None:
        self._ballast.unlink()


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Nothing under ``folder`` can be written, although processes have files open there: what they open from now on is on another mount."""
    subprocess.run(["mount", "--bind", folder, folder], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", folder], check=True)
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True, timeout=30)


FAULTS = r"""
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
static const char *stale_under, *stuck_under, *stale_while, *stuck_while;
static const char *variable(const char *name) { return getenv(name) ? strdup(getenv(name)) : NULL; }
__attribute__((constructor)) static void begin(void) {
    stale_under = variable("STALE_UNDER"); stale_while = variable("STALE_WHILE");
    stuck_under = variable("STUCK_UNDER"); stuck_while = variable("STUCK_WHILE");
}
static int faulty(const char *path, const char *under, const char *file) {
    if (!path || !under || !file || access(file, F_OK)) return 0;
    for (size_t length; *under; under += length + (under[length] == ':'))
        if (length = strcspn(under, ":"), !strncmp(path, under, length)) return 1;
    return 0;
}
static int stale(const char *path) {
    if (!faulty(path, stale_under, stale_while)) return 0;
    errno = ESTALE;
    return 1;
}
#define REAL(name, result, types) ((result (*) types)dlsym(RTLD_NEXT, name))
#define OPEN(name) int name(const char *path, int flags, ...) { \
    va_list list; va_start(list, flags); mode_t mode = va_arg(list, mode_t); va_end(list); \
    return stale(path) ? -1 : REAL(#name, int, (const char *, int, mode_t))(path, flags, mode); }
OPEN(open) OPEN(open64)
int rename(const char *a, const char *b) { return stale(a) ? -1 : REAL("rename", int, (const char *, const char *))(a, b); }
int mkdir(const char *path, mode_t mode) { return stale(path) ? -1 : REAL("mkdir", int, (const char *, mode_t))(path, mode); }
int unlink(const char *path) { return stale(path) ? -1 : REAL("unlink", int, (const char *))(path); }
DIR *opendir(const char *path) { return stale(path) ? NULL : REAL("opendir", DIR *, (const char *))(path); }
int stat(const char *path, struct stat *s) { return stale(path) ? -1 : REAL("stat", int, (const char *, struct stat *))(path, s); }
int stat64(const char *path, struct stat64 *s) {
    return stale(path) ? -1 : REAL("stat64", int, (const char *, struct stat64 *))(path, s);
}
int fsync(int fd) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    path[length < 0 ? 0 : length] = 0;
    while (faulty(path, stuck_under, stuck_while)) usleep(20000);
    return REAL("fsync", int, (int))(fd);
}
"""


class FaultyFolder:
    """A folder of a file server that may forget it or stop to answer, for the processes started with ``variables``.

    Args:
        stuck: beginnings of the paths of which no fsync returns while it does not answer.
    """

    def __init__(self, folder: Path, work: Path, *stuck: Path) -> None:
        self.folder, self.variables = folder, dict[str, str]()
        self._faults, library = {name: work / name for name in ("STALE_WHILE", "STUCK_WHILE")}, work / "faults.so"
        if shutil.which("cc") is None:
            return
        command = ["cc", "-shared", "-fPIC", "-x", "c", "-", "-o", library, "-ldl"]
        subprocess.run(command, input=FAULTS, text=True, check=True, timeout=60)
        paths = {"STALE_UNDER": f"{folder}/", "STUCK_UNDER": ":".join(map(str, stuck))}
        faults = {name: str(path) for name, path in self._faults.items()}
        self.variables = {"LD_PRELOAD": str(library)} | paths | faults

    def stale(self) -> contextlib.AbstractContextManager[None]:
        """Every call for a file in it gives ESTALE, in those processes."""
        return self._while("STALE_WHILE")

    def stuck(self) -> contextlib.AbstractContextManager[None]:
        """No fsync of the files named returns, in those processes."""
        return self._while("STUCK_WHILE")

    @contextlib.contextmanager
    def _while(self, fault: str) -> Iterator[None]:
        if not self.variables:
            pytest.skip("there is no C compiler to make calls of the file system fail with")
        self._faults[fault].touch()
        try:
            yield
        finally:
            self._faults[fault].unlink()


@contextlib.contextmanager
def small_disk(path: Path, size: str = "24m") -> Iterator[SmallDisk]:
    """Mounts a file system of ``size`` at ``path``; skips the test where that is not allowed."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    path.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        yield SmallDisk(path)
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True, timeout=30)
