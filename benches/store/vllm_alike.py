"""What vLLM's pipe does with CPU tensors, and no more: two keys an item, pickles, one worker thread."""

import pickle
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import torch
from torch.distributed import TCPStore

sends = sys.argv[1] == "send"
store = TCPStore("127.0.0.1", 0 if sends else int(sys.argv[2]), world_size=2, is_master=sends,
                 timeout=timedelta(seconds=300), use_libuv=False, wait_for_workers=False)
worker = ThreadPoolExecutor(max_workers=1)
counter = 0
sent = []


def send_obj(value):
    global counter
    key = f"send_to/1/{counter}"
    store.set(key, pickle.dumps(value))
    sent.append(key)
    counter += 1


def recv_obj():
    global counter
    value = pickle.loads(store.get(f"send_to/1/{counter}"))
    counter += 1
    return value


def send_tensor(tensor):
    send_obj({"dtype": tensor.dtype, "shape": tensor.shape})
    send_obj(tensor)


def recv_tensor():
    metadata = recv_obj()
    buffer = torch.empty(metadata["shape"], dtype=metadata["dtype"])
    buffer[...] = recv_obj()
    return buffer


if sends:
    print(store.port, flush=True)
for line in sys.stdin:
    words = line.split()
    if words == ["go"]:
        futures = [worker.submit(send_tensor, tensors[item % len(tensors)]) for item in range(items)]
        for future in futures:
            future.result()
        continue
    if words == ["expire"]:
        for key in sent:
            store.delete_key(key)
        sent.clear()
        print("expired", flush=True)
        continue
    items, size = map(int, words)
    if sends:
        tensors = [torch.full((size,), byte, dtype=torch.uint8) for byte in range(1, 5)]
        print("ready", flush=True)
    else:
        for _ in range(items):
            tensor = worker.submit(recv_tensor).result()
            assert tensor.numel() == size
        print("done", flush=True)
