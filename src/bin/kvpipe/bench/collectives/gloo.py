"""A rank of torch.distributed over gloo, which does on standard input what `step.rs` says."""

import os

# Gloo greets on standard output, where our parent reads JSON.
parent = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(os.open(os.devnull, os.O_WRONLY), 1)

import json
import queue
import socket
import sys
import threading
import time
from datetime import timedelta

import torch
import torch.distributed as dist


def tell(event):
    print(json.dumps(event), file=parent)


def read_steps(steps):
    for line in sys.stdin:
        steps.put(json.loads(line))
    # The parent is gone, and with it the reason for whatever we are doing.
    os._exit(1)


def join(rank, ranks, port, patience):
    serves = rank == 0
    store = dist.TCPStore("127.0.0.1", port, ranks, serves, timeout=patience, wait_for_workers=False)
    if serves:
        tell({"store": f"127.0.0.1:{store.port}"})
    loopback = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
    os.environ["GLOO_SOCKET_IFNAME"] = loopback
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks, timeout=patience)


class Prepared:
    """The memory of a measurement, and each way to use it."""

    def __init__(self, rank, ranks, operation, elements):
        self.ways = {}
        tensor = torch.full((elements,), float(rank + 1))
        if operation == "all_reduce":
            self.ways["gloo"] = lambda: dist.all_reduce(tensor)
            self.check(tensor, [ranks * (ranks + 1) / 2])
            # Sums of sums would soon be infinite.
            tensor.zero_()
        else:
            output = torch.zeros(ranks * elements)
            parts = list(output.chunk(ranks))
            self.ways["gloo"] = lambda: dist.all_gather_into_tensor(output, tensor)
            self.ways["gloo_list"] = lambda: dist.all_gather(parts, tensor)
            self.check(output, range(1, ranks + 1))

    def check(self, output, expected):
        """Runs each way once, and looks at every element."""
        for name, run in self.ways.items():
            run()
            for number, part in zip(expected, output.chunk(len(expected))):
                if not bool((part == number).all()):
                    sys.exit(f"{name} gave other numbers than {list(expected)}")

    def time(self, way, count, warm_up):
        run = self.ways[way]
        for _ in range(warm_up):
            run()
        dist.barrier()
        begin = time.perf_counter()
        for _ in range(count):
            run()
        return time.perf_counter() - begin


def main():
    rank, ranks, port, seconds = (int(argument) for argument in sys.argv[1:])
    torch.set_num_threads(1)
    steps = queue.Queue()
    threading.Thread(target=read_steps, args=(steps,), daemon=True).start()
    join(rank, ranks, port, timedelta(seconds=seconds))
    tell({"done": 0.0})
    prepared = None
    while (step := steps.get()) != "leave":
        if "prepare" in step:
            # The old memory goes before the new comes.
            prepared = None
            wanted = step["prepare"]
            prepared = Prepared(rank, ranks, wanted["operation"], wanted["elements"])
            tell({"done": 0.0})
        else:
            wanted = step["run"]
            tell({"done": prepared.time(wanted["way"], wanted["count"], wanted["warm_up"])})
    dist.destroy_process_group()
    parent.close()
    os._exit(0)


main()
