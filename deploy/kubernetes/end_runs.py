"""Ends every run whose driver is in this pod, as SIGTERM does: with a checkpoint. The preStop hook of the driver's pod.

Kubernetes would send SIGTERM to Ray, which kills its jobs.
"""

import sys

import psutil

LIMIT_S = 90.0  # less than the pod's terminationGracePeriodSeconds; a run needs about 20


def main() -> int:
    drivers = []
    for process in psutil.process_iter(["cmdline"]):
        if (process.info["cmdline"] or [])[1:4] in (
            ["-m", "cluster", word] for word in ("train", "finetune", "resume")
        ):
            process.terminate()
            drivers.append(process)
    _, left = psutil.wait_procs(drivers, timeout=LIMIT_S)
    print(f"{len(drivers)} runs were asked to end, {len(left)} have not")
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
