"""A rank that behaves as one of vLLM 0.9 to 0.12, without vLLM: its StatelessProcessGroup, and its
PyNcclPipe on the cpu device. Keys, counters, pickles and the order of everything are those that
vLLM's classes were observed to have, defects included.

    pynccl_pipe_alike.py RANK WORLD_SIZE PORT STEP...

carries out the steps and prints a JSON line for whatever it sends and receives. With port 0, rank 0
takes a free port and prints it first. Then rank 0, whose process is the store's server, stays until
its standard input ends.

As a module it has the two classes, and a KVTransferConfig.
"""

import collections
import concurrent.futures
import ctypes
import hashlib
import json
import logging
import pickle
import socket
import sys
import threading
import time
import types
import uuid
from datetime import timedelta

import torch
from torch.distributed import TCPStore


def say(**line):
    print(json.dumps(line), flush=True)


# The class that a communicator's id is of. Its pickles name this module.
WRAPPER = "vllm.distributed.device_communicators.pynccl_wrapper"


class ncclUniqueId(ctypes.Structure):
    _fields_ = [("internal", ctypes.c_byte * 128)]


def provide(path, **members):
    """Makes a module importable that is not installed."""
    parts = path.split(".")
    for depth in range(1, len(parts) + 1):
        sys.modules.setdefault(".".join(parts[:depth]), types.ModuleType(parts[depth - 1]))
    for name, member in members.items():
        member.__module__ = path
        setattr(sys.modules[path], name, member)


provide(WRAPPER, ncclUniqueId=ncclUniqueId)


class StatelessProcessGroup:
    def __init__(self, rank, world_size, store, data_expiration_seconds):
        assert rank < world_size
        self.rank = rank
        self.world_size = world_size
        self.store = store
        self.data_expiration_seconds = data_expiration_seconds
        self.send_dst_counter = dict.fromkeys(range(world_size), 0)
        self.recv_src_counter = dict.fromkeys(range(world_size), 0)
        self.broadcast_send_counter = 0
        self.broadcast_recv_src_counter = dict.fromkeys(range(world_size), 0)
        self.entries = collections.deque()

    @staticmethod
    def create(host, port, rank, world_size, data_expiration_seconds=3600, store_timeout=300):
        listen_fd = None
        if rank == 0:
            # The host's address only: TCPStore on its own would listen on every one.
            listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, port))
            listener.listen()
            if port == 0:
                port = listener.getsockname()[1]
                say(port=port)
            listen_fd = listener.detach()
        store = TCPStore(
            host_name=host,
            port=port,
            world_size=world_size,
            is_master=rank == 0,
            timeout=timedelta(seconds=store_timeout),
            use_libuv=False,
            master_listen_fd=listen_fd,
        )
        return StatelessProcessGroup(rank, world_size, store, data_expiration_seconds)

    def _put(self, key, value):
        self.expire_data()
        self.store.set(key, pickle.dumps(value))
        self.entries.append((key, time.time()))

    def expire_data(self):
        while self.entries and time.time() - self.entries[0][1] > self.data_expiration_seconds:
            self.store.delete_key(self.entries.popleft()[0])

    def send_obj(self, obj, dst):
        self._put(f"send_to/{dst}/{self.send_dst_counter[dst]}", obj)
        self.send_dst_counter[dst] += 1

    def recv_obj(self, src):
        obj = pickle.loads(self.store.get(f"send_to/{self.rank}/{self.recv_src_counter[src]}"))
        self.recv_src_counter[src] += 1
        return obj

    def broadcast_obj(self, obj, src):
        if src == self.rank:
            self._put(f"broadcast_from/{src}/{self.broadcast_send_counter}", obj)
            self.broadcast_send_counter += 1
            return obj
        received = pickle.loads(self.store.get(f"broadcast_from/{src}/{self.broadcast_recv_src_counter[src]}"))
        self.broadcast_recv_src_counter[src] += 1
        return received

    def all_gather_obj(self, obj):
        return [self.broadcast_obj(obj if src == self.rank else None, src) for src in range(self.world_size)]

    def barrier(self, timeout=30.0):
        barrier_id = f"barrier_{uuid.uuid4()}" if self.rank == 0 else None
        barrier_id = self.broadcast_obj(barrier_id, src=0)
        self._mark_and_maybe_wait("arrival", barrier_id, timeout, waits=True)
        self._mark_and_maybe_wait("departure", barrier_id, timeout, waits=self.rank == 0)
        if self.rank == 0:
            for phase in ("arrival", "departure"):
                for rank in range(self.world_size):
                    self.store.delete_key(f"{phase}_{barrier_id}_{rank}")

    def _mark_and_maybe_wait(self, phase, barrier_id, timeout, waits):
        self.store.set(f"{phase}_{barrier_id}_{self.rank}", b"1")
        missing = set(range(self.world_size)) if waits else set()
        began = time.time()
        while missing:
            if time.time() - began > timeout:
                raise RuntimeError(f"{phase} timed out after {timeout} seconds")
            for rank in sorted(missing):
                try:
                    self.store.get(f"{phase}_{barrier_id}_{rank}")
                    missing.remove(rank)
                except KeyError:
                    pass
                except Exception:
                    logging.exception("asking for rank %d's %s", rank, phase)


class KVTransferConfig:
    """What a pipe reads of it."""

    def __init__(self, kv_rank, kv_parallel_size=1, kv_ip="127.0.0.1", kv_port=14579, kv_buffer_device="cuda",
                 kv_buffer_size=1e9, kv_connector=None, kv_role=None, kv_connector_extra_config=None):
        self.kv_rank = kv_rank
        self.kv_parallel_size = kv_parallel_size
        self.kv_ip = kv_ip
        self.kv_port = kv_port
        self.kv_buffer_device = kv_buffer_device
        self.kv_buffer_size = kv_buffer_size
        self.extra = kv_connector_extra_config or {}


class PyNcclPipe:
    def __init__(self, local_rank, config, device=None, port_offset=0):
        self.config = config
        assert (device or config.kv_buffer_device) != "cuda", "here is no communicator"
        self.device = "cpu"
        self.group = StatelessProcessGroup.create(
            host=config.kv_ip,
            port=config.kv_port + port_offset,
            rank=config.kv_rank,
            world_size=config.kv_parallel_size,
            store_timeout=config.extra.get("store_timeout", 300),
        )
        self.group.barrier()
        self.target_for_send = (config.kv_rank + 1) % config.kv_parallel_size
        self.target_for_recv = (config.kv_rank - 1) % config.kv_parallel_size
        self.buffer_size = 0
        self.buffer_size_lock = threading.Lock()
        self.kv_transport_thread = None

    # One thread for both directions.
    def _submit(self, function, *args):
        if self.kv_transport_thread is None:
            self.kv_transport_thread = concurrent.futures.ThreadPoolExecutor(max_workers=1)
        return self.kv_transport_thread.submit(function, *args)

    def send_tensor(self, tensor):
        size = 0 if tensor is None else tensor.element_size() * tensor.numel()
        while self.buffer_size > self.config.kv_buffer_size:
            time.sleep(0.05)
        with self.buffer_size_lock:
            self.buffer_size += size
        self._submit(self._send, tensor, size)

    def _send(self, tensor, size):
        # Nobody looks at the future, so this is where a failure shows.
        try:
            none = tensor is None
            metadata = {"dtype": None if none else tensor.dtype, "shape": None if none else tensor.shape}
            self.group.send_obj(metadata, self.target_for_send)
            if not none:
                self.group.send_obj(tensor.to(self.device), self.target_for_send)
        except Exception:
            logging.exception("sending")
            raise
        with self.buffer_size_lock:
            self.buffer_size -= size

    def recv_tensor(self):
        return self._submit(self._recv).result()

    def _recv(self):
        metadata = self.group.recv_obj(self.target_for_recv)
        if metadata["dtype"] is None:
            return None
        buffer = torch.empty(metadata["shape"], dtype=metadata["dtype"], device=self.device)
        buffer[...] = self.group.recv_obj(self.target_for_recv)
        return buffer

    def close(self):
        if self.kv_transport_thread is not None:
            self.kv_transport_thread.shutdown()


def raw(tensor):
    tensor = tensor.contiguous()
    # numpy lacks some dtypes.
    return ctypes.string_at(tensor.data_ptr(), tensor.numel() * tensor.element_size())


def described(value):
    if value is None:
        return None
    if isinstance(value, torch.Tensor):
        sha256 = hashlib.sha256(raw(value)).hexdigest()
        return {"dtype": str(value.dtype).removeprefix("torch."), "shape": list(value.shape), "sha256": sha256}
    if isinstance(value, str):
        return {"text": value}
    if isinstance(value, ncclUniqueId):
        return {"id": bytes(value).hex()}
    if isinstance(value, list):
        return [described(member) for member in value]
    assert list(value) == ["dtype", "shape"], value
    assert (value["dtype"] is None) == (value["shape"] is None), value
    if value["dtype"] is None:
        return {"metadata": None}
    assert type(value["shape"]) is torch.Size, value
    return {"metadata": {"dtype": str(value["dtype"]).removeprefix("torch."), "shape": list(value["shape"])}}


# What torch writes and can load again, and what it writes only; a receiver that is not torch takes all.
LOADABLE = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16, torch.bfloat16,
            torch.float32, torch.float64, torch.complex64, torch.complex128, torch.bool]
ONLY_WRITTEN = [torch.complex32, torch.uint16, torch.uint32, torch.uint64, torch.float8_e4m3fn, torch.float8_e5m2,
                torch.float8_e4m3fnuz, torch.float8_e5m2fnuz]


def filled(dtype, *shape):
    count = torch.Size(shape).numel() * dtype.itemsize
    pattern = torch.arange(count) % (2 if dtype == torch.bool else 251)
    return pattern.to(torch.uint8).view(dtype).reshape(shape)


def items():
    """Tensors of every kind, with Nones between them."""
    yield None
    for dtype in LOADABLE + ONLY_WRITTEN:
        for shape in ((), (0,), (5,), (2, 3, 4)):
            yield filled(dtype, *shape)
        yield None
    base = torch.arange(120, dtype=torch.float32)
    cube = base.view(2, 3, 4, 5)
    yield from (base[2:5], base[1::7], cube.view(24, 5).t(), cube.permute(3, 1, 0, 2), cube[:, 1], base[7])
    yield torch.tensor([[7.0]]).expand(3, 4)
    yield filled(torch.uint8, 70_000)
    yield from (None, None)
    # A signal pipe's.
    yield from (torch.tensor([signal]) for signal in range(3))
    yield filled(torch.bfloat16, 5, 1 << 19)
    yield filled(torch.float32, 1 << 10, 1280).t()
    yield torch.ones(1, requires_grad=True).detach()
    yield None


def some_items():
    """Those that a file of safetensors may hold."""
    yield from (filled(torch.float32, 2, 3), None, filled(torch.uint8, 70_000))
    yield from (filled(torch.bfloat16, 5, 1 << 19), filled(torch.int64, 24, 5).t(), torch.tensor(True))


TEXT, METADATA = "from python: é\n", {"dtype": torch.float16, "shape": torch.Size([2, 3])}


def run(rank, world_size, port, steps):
    pipe = group = None
    for step in steps:
        step, _, argument = step.partition(":")
        number = int(argument) if argument else 1
        if step == "pipe":
            pipe = PyNcclPipe(0, KVTransferConfig(rank, world_size, kv_port=port, kv_buffer_device="cpu"))
        elif step == "group":
            group = StatelessProcessGroup.create("127.0.0.1", port, rank, world_size)
        elif step in ("send-items", "send-some-items"):
            for item in items() if step == "send-items" else some_items():
                say(sent=described(item))
                pipe.send_tensor(item)
        elif step == "receive":
            for _ in range(number):
                say(received=described(pipe.recv_tensor()))
        elif step == "close":
            pipe.close()
        elif step == "wait":
            assert sys.stdin.readline() == "go on\n"
        elif step == "barrier":
            for _ in range(number):
                group.barrier()
        elif step == "tell":
            for value in (None, TEXT, METADATA, {"dtype": None, "shape": None}, filled(torch.int16, 3)):
                say(sent=described(value))
                group.send_obj(value, number)
        elif step == "hear":
            for _ in range(5):
                say(received=described(group.recv_obj(number)))
        elif step == "broadcast":
            value = group.broadcast_obj(TEXT if rank == number else None, number)
            say(received=described(value))
        elif step == "gather":
            say(received=described(group.all_gather_obj(f"rank {rank}")))
        elif step == "id":
            # As a communicator does: rank 0's replaces the zeroes that the others have.
            own = bytes(range(128)) if rank == number else bytes(128)
            say(received=described(group.broadcast_obj(ncclUniqueId.from_buffer_copy(own), number)))
        else:
            raise ValueError(step)
    if rank == 0:
        sys.stdin.read()


if __name__ == "__main__":
    run(*map(int, sys.argv[1:4]), sys.argv[4:])
