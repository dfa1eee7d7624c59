"""A pretend ``cuda:0``: tensors of the CPU, of which some are said to lie on a GPU.

Load it as a pytest plugin, ``-p tests.device.pretend``, in a process of its own.

A tag on its storage says that a tensor is on the GPU. One mode answers what Python asks: where a
tensor is, and to move it. Another sees every operation, backward passes included. It raises where
CUDA would raise, and counts kernel launches and host synchronisations.

Of streams it knows which of them a graph is recorded on. It knows nothing of time, of real kernels
and of their rounding.
"""

from __future__ import annotations

import contextlib
import threading
import types
import weakref
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")


def names(text: str) -> frozenset[str]:
    return frozenset(text.split())


VIEWS = names(
    "view _unsafe_view reshape t transpose permute expand slice select unsqueeze squeeze split"
    " split_with_sizes chunk unbind detach alias as_strided unfold diagonal narrow _reshape_alias"
    " lift_fresh detach_ set_ empty empty_like new_empty empty_strided new_empty_strided"
    " is_same_size _local_scalar_dense resize_ view_as unsafe_split"
)
"""Operations without a kernel."""
KERNELS = {"nonzero": 4, "sort": 4, "topk": 3, "unique_dim": 12, "_unique2": 8, "isin": 2}
"""Kernels of operations that have several; about, by version."""
WAITS = names("nonzero masked_select unique_dim _unique2 unique_consecutive equal")
"""The host waits for a size or an answer."""
TOGETHER = names(
    "cat stack mm addmm bmm baddbmm gather scatter scatter_ scatter_add scatter_add_ index_select"
    " embedding searchsorted index_add index_add_ isin masked_scatter masked_scatter_"
)
"""These take no number from the host beside a tensor of the GPU."""
INDEXING = names("index index_put index_put_ _index_put_impl_")
functions_off = torch._C.DisableTorchFunction
storage_of = torch._C._storage_id


class State(threading.local):
    """What a thread is doing."""

    silent = False
    """Nothing is looked at."""
    inside = False
    """Inside of one kernel, which the CPU takes apart."""
    stream: Any = None
    """Where kernels are launched; None is the default stream."""
    modes: Any = None


class Device:
    """The GPU: what is on it, and what it was asked to do."""

    def __init__(self) -> None:
        self.here: dict[int, int] = {}
        """Bytes by storage."""
        self.homeless: set[int] = set()
        """Storages that autograd made without saying where."""
        self.capacity, self.used, self.peak = 80 * 2**30, 0, 0
        self.bf16 = True
        """An older GPU computes in float16."""
        self.counts: Counter[str] = Counter()
        self.kept = 0
        """Bytes that were freed, and that the allocator keeps for tensors, not for graphs."""
        self.recordings: dict[Any, list[Any]] = {}
        """What graphs hold while they are recorded, by stream."""

    @property
    def recording(self) -> list[Any] | None:
        """What is recorded on this thread's stream."""
        return self.recordings.get(state.stream)

    def put(self, x: Tensor) -> Tensor:
        """Put a tensor on the GPU.

        Raises:
            torch.OutOfMemoryError: it does not fit.
        """
        with functions_off():
            if x.device.type != "cpu" or x.layout != torch.strided:
                return x
            key = storage_of(x)
            if key not in self.here:
                storage = x.untyped_storage()
                size = storage.nbytes()
                kept = 0 if self.recording is None else self.kept
                if self.used + kept + size > self.capacity:
                    raise torch.OutOfMemoryError(f"pretend CUDA out of memory: {size} bytes more")
                self.here[key] = size
                self.used += size
                self.kept -= min(self.kept, size) if self.recording is None else 0
                self.peak = max(self.peak, self.used)
                weakref.finalize(storage, self._free, key)
        return x

    def _free(self, key: int) -> None:
        size = self.here.pop(key, 0)
        self.used -= size
        self.kept += size

    def has(self, x: Any) -> bool:
        return isinstance(x, Tensor) and storage_of(x) in self.here

    def launch(self, number: int = 1) -> None:
        if not state.inside:
            self.counts["launches"] += number

    def wait(self, why: str) -> None:
        """Count a synchronisation."""
        if self.recording is not None:
            raise RuntimeError(f"operation not permitted when stream is capturing: {why}")
        self.counts["synchronisations"] += 1
        self.counts[f"waits for {why}"] += 1

    @contextlib.contextmanager
    def counting(self) -> Iterator[Counter[str]]:
        """Yield a counter that holds, at the end, what was asked of the GPU inside."""
        before, found = self.counts.copy(), Counter[str]()
        yield found
        found.update(self.counts - before)


device, state = Device(), State()


@contextlib.contextmanager
def being(**flags: bool) -> Iterator[None]:
    before = {name: getattr(state, name) for name in flags}
    vars(state).update(flags)
    try:
        yield
    finally:
        vars(state).update(before)


def means_gpu(place: Any) -> bool:
    """Whether an argument ``device=`` names the GPU."""
    if place is None or isinstance(place, bool):
        return False
    return isinstance(place, int) or torch.device(place).type == "cuda"


def tensors_in(values: Any) -> list[Tensor]:
    """Return the tensors of nested lists and tuples."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += tensors_in(value)
    return found


# --- what Python asks of a tensor -----------------------------------------------------------------


class _Moved(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, to_gpu: bool, dtype: torch.dtype) -> Tensor:
        ctx.back = device.has(x), x.dtype
        return _copied(x, to_gpu, dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _copied(gradient, *ctx.back), None, None


def _copied(x: Tensor, to_gpu: bool, dtype: torch.dtype) -> Tensor:
    with functions_off(), being(silent=True):
        copy = torch.empty_like(x.detach(), dtype=dtype).copy_(x.detach())
    return device.put(copy) if to_gpu else copy


def moved(x: Tensor, to_gpu: bool, dtype: torch.dtype | None = None) -> Tensor:
    """Copy a tensor to the other side; the host waits for what comes back."""
    if to_gpu:
        device.counts["copies to the GPU"] += 1
    else:
        device.wait("a tensor")
    with functions_off():
        if torch.is_grad_enabled() and x.requires_grad:
            return _Moved.apply(x, to_gpu, dtype or x.dtype)
        return _copied(x, to_gpu, dtype or x.dtype)


def _to(func: Any, args: Any, kwargs: Any) -> Tensor:
    x, rest, kwargs = args[0], list(args[1:]), dict(kwargs)
    rest += [kwargs.pop("other")] if "other" in kwargs else []
    place, dtype = kwargs.pop("device", None), kwargs.pop("dtype", None)
    for value in rest[:2]:
        if isinstance(value, Tensor):
            place, dtype = GPU if device.has(value) else CPU, value.dtype
        elif isinstance(value, torch.dtype):
            dtype = value
        elif isinstance(value, (str, torch.device)) or type(value) is int:
            place = value
    with functions_off():
        kind, dtype = x.device.type, dtype or x.dtype
    if kind == "meta" or (place is not None and torch.device(place).type not in ("cuda", "cpu")):
        if means_gpu(place):
            raise NotImplementedError("Cannot copy out of meta tensor; no data!")
        return func(*args, **kwargs) if place is None else func(x, place, dtype)
    target = device.has(x) if place is None else means_gpu(place)
    if target != device.has(x):
        return moved(x, target, dtype)
    return func(x, dtype, **{k: v for k, v in kwargs.items() if k in ("copy", "memory_format")})


def _numpy(func: Any, args: Any, kwargs: Any) -> Any:
    if device.has(args[0]):
        raise TypeError("can't convert cuda:0 device type tensor to numpy")
    return func(*args, **kwargs)


def _tolist(func: Any, args: Any, kwargs: Any) -> Any:
    if device.has(args[0]):
        device.wait("a list")
    with being(silent=True):
        return func(*args, **kwargs)


def _pinned(func: Any, args: Any, kwargs: Any) -> Tensor:
    if device.has(args[0]):
        raise RuntimeError("cannot pin a tensor of the GPU")
    device.counts["pinned"] += 1
    return args[0]


def _attention(func: Any, args: Any, kwargs: Any) -> Tensor:
    """Count a kernel, and two more where the mask is copied to rows of aligned bytes.

    What comes out lies in memory as CUDA's kernels leave it: query positions before heads.
    """
    found = [device.has(each) for each in tensors_in([*args, *kwargs.values()])]
    if any(found) and not all(found):
        raise RuntimeError("Expected query, key, value, and attn_mask to be on the same device")
    if not any(found):
        return func(*args, **kwargs)
    mask = kwargs.get("attn_mask", args[3] if len(args) > 3 else None)
    if mask is not None:
        query = args[0] if args else kwargs["query"]
        if mask.dtype not in (torch.bool, query.dtype):
            raise RuntimeError(f"attn_mask of {mask.dtype} beside a query of {query.dtype}")
        device.launch(2 * any(step % 8 for step in mask.stride()[:-1]))
    out = _one_kernel(func, args, kwargs)
    with being(inside=True):
        return out.transpose(1, 2).contiguous().transpose(1, 2)


def _one_kernel(func: Any, args: Any, kwargs: Any) -> Tensor:
    if not device.has(args[0] if args else kwargs["query"]):
        return func(*args, **kwargs)
    device.launch()
    with being(inside=True):
        return func(*args, **kwargs)


def _copy_of(func: Any, args: Any, kwargs: Any) -> Any:
    copy = func(*args, **kwargs)
    return device.put(copy) if device.has(args[0]) else copy


ANSWERS: dict[Any, Any] = {
    Tensor.device.__get__: lambda f, a, k: GPU if device.has(a[0]) else f(*a),
    Tensor.is_cuda.__get__: lambda f, a, k: device.has(a[0]),
    Tensor.is_cpu.__get__: lambda f, a, k: not device.has(a[0]) and f(*a),
    Tensor.get_device: lambda f, a, k: 0 if device.has(a[0]) else f(*a),
    Tensor.cpu: lambda f, a, k: moved(a[0], False) if device.has(a[0]) else f(*a),
    Tensor.cuda: lambda f, a, k: a[0] if device.has(a[0]) else moved(a[0], True),
    Tensor.to: _to,
    Tensor.numpy: _numpy,
    Tensor.__array__: _numpy,
    Tensor.tolist: _tolist,
    Tensor.pin_memory: _pinned,
    Tensor.__deepcopy__: _copy_of,
    torch.nn.functional.scaled_dot_product_attention: _attention,
    torch.nn.functional.rms_norm: _one_kernel,
    torch.rms_norm: _one_kernel,
}


class Asked(TorchFunctionMode):
    """Answers what Python asks."""

    def __torch_function__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if state.silent:
            return func(*args, **kwargs)
        if func in ANSWERS:
            return ANSWERS[func](func, args, kwargs)
        generator, place = kwargs.get("generator"), kwargs.get("device")
        to_gpu = func is not torch.device and means_gpu(place)
        if generator is not None:
            drawn = to_gpu or (place is None and bool(args) and device.has(args[0]))
            if drawn != isinstance(generator, _OfGPU):
                raise RuntimeError("the generator is on another device than what it draws")
        if not to_gpu:
            return func(*args, **kwargs)
        if args and device.has(args[0]):  # as_tensor, new_zeros
            return func(*args, **{k: v for k, v in kwargs.items() if k != "device"})
        device.counts["copies to the GPU"] += func in (torch.tensor, torch.as_tensor)
        return device.put(func(*args, **kwargs | {"device": CPU}))


# --- what is computed -----------------------------------------------------------------------------


def _recorded(func: Any, name: str, args: Any, kwargs: Any) -> Any:
    """Compute; but while a graph is recorded, write into no tensor that is there."""
    recording = device.recording
    if recording is None:
        return func(*args, **kwargs)
    writes = func._schema.is_mutable
    out = kwargs.get("out", args[0] if args else None) if writes else func(*args, **kwargs)
    if name not in VIEWS:
        recording.append((func, args, kwargs, [] if writes else tensors_in([out])))
    return out


class Graph:
    """What ``torch.cuda.CUDAGraph`` is: kernels that are launched together, on the same memory."""

    def capture_begin(self, **_: Any) -> None:
        if state.stream is None:
            raise RuntimeError("CUDA graphs must be captured on a non-default stream")
        device.recordings[state.stream] = self.steps = []

    def capture_end(self) -> None:
        del device.recordings[state.stream]
        device.counts["graphs"] += 1

    def replay(self) -> None:
        device.launch()
        with functions_off(), being(silent=True):
            for func, args, kwargs, out in self.steps:
                found = func(*args, **kwargs)
                for old, new in zip(out, tensors_in([found]), strict=False):
                    old.copy_(new)


class Computed(TorchDispatchMode):
    """Sees every operation."""

    def __torch_dispatch__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if kwargs.get("pin_memory"):  # which needs a real GPU
            device.counts["pinned"] += 1
            kwargs = {**kwargs, "pin_memory": False}
        if state.silent:
            return func(*args, **kwargs)
        with functions_off():
            given = tensors_in([*args, *kwargs.values()])
            name = getattr(func, "_overloadpacket", func).__name__
            if not any(map(device.has, given)):
                out = func(*args, **kwargs)
                if not given and torch._C._current_graph_task_id() != -1:
                    device.homeless |= {storage_of(x) for x in tensors_in([out])}
                return out
            self._same_device(name, args, given)
            self._waits(name, args, kwargs)
            if name not in VIEWS:
                device.launch(KERNELS.get(name, 1))
            out = _recorded(func, name, args, kwargs)
            if name != "copy_" or device.has(args[0]):
                for each in tensors_in([out]):
                    device.put(each)
            return out

    def _waits(self, name: str, args: Any, kwargs: Any) -> None:
        sized = name == "repeat_interleave" and len(args) == 1 and not kwargs.get("output_size")
        if name == "_local_scalar_dense":
            device.wait("a number")
        elif name in WAITS or sized:
            device.wait(name)
        elif name == "copy_" and device.has(args[1]) and not device.has(args[0]):
            device.wait("a tensor")
        elif name in INDEXING:
            masks = [i for i in args[1] if i is not None and i.dtype in (torch.bool, torch.uint8)]
            here = device.has(args[0])
            strangers = sum(i is not None and here and not device.has(i) for i in args[1])
            device.counts["copies to the GPU"] += strangers
            filled = name != "index" and args[2].numel() == 1
            if masks and not filled:
                device.wait("a boolean index")
                device.launch(KERNELS["nonzero"])

    def _same_device(self, name: str, args: Any, given: list[Tensor]) -> None:
        """Raise where CUDA would."""
        if name in ("copy_", "set_", "detach"):
            return
        indexed = name in INDEXING
        for x in given:
            elsewhere = not device.has(x) and storage_of(x) not in device.homeless
            if not elsewhere or x.device.type == "meta":
                continue
            number = x.dim() == 0 and name not in TOGETHER
            index = indexed and device.has(args[0]) and any(x is i for i in args[1])
            if not number and not index and not name.startswith(("_foreach", "_fused_adam")):
                shapes = [(*each.shape, "cuda" if device.has(each) else "cpu") for each in given]
                raise RuntimeError(
                    "Expected all tensors to be on the same device, but found cuda:0 and cpu"
                    f" ({name}: {shapes})"
                )


# --- torch.cuda -----------------------------------------------------------------------------------

_Generator = torch._C.Generator


class _OfGPU(_Generator):
    """A generator of the GPU: its numbers are others than the CPU's of the same seed."""

    device = GPU

    def manual_seed(self, seed: int) -> _OfGPU:
        super().manual_seed((seed + 0x5EED) % 2**63)
        return self


class _AnyGenerator(type):
    def __instancecheck__(cls, x: Any) -> bool:
        return isinstance(x, _Generator)

    def __call__(cls, device: Any = "cpu") -> Any:
        return _OfGPU() if means_gpu(device) else _Generator(device)


class _Nothing:
    """A stream or an event."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __enter__(self) -> _Nothing:
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


def wait_for_all() -> None:
    """Wait for the device, which CUDA refuses while any thread records a graph."""
    if device.recordings:
        raise RuntimeError("operation not permitted when stream is capturing")
    device.counts["synchronize"] += 1


def empty_cache() -> None:
    device.counts["empty_cache"] += 1
    device.kept = 0


def start() -> None:
    """Look at what this thread does from now on."""
    if state.modes is None:
        state.modes = Computed(), Asked()
        for mode in state.modes:
            mode.__enter__()


def _torch_cuda() -> dict[str, Any]:
    """Return what stands in ``torch.cuda`` from now on."""

    def properties(*_: Any) -> Any:
        major = 9 if device.bf16 else 7
        return types.SimpleNamespace(
            name="pretend GPU", major=major, minor=0, total_memory=device.capacity
        )

    def reset(*_: Any) -> None:
        device.peak = device.used

    nothing = dict.fromkeys(
        ["set_device", "init", "_lazy_init", "ipc_collect", "manual_seed", "manual_seed_all"],
        lambda *_: None,
    )
    numbers = torch.Generator().manual_seed(0).get_state()
    return nothing | {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "_is_in_bad_fork": lambda: False,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "synchronize": lambda *_: wait_for_all(),
        "empty_cache": empty_cache,
        "mem_get_info": lambda *_: (device.capacity - device.used, device.capacity),
        "memory_allocated": lambda *_: device.used,
        "memory_reserved": lambda *_: device.used,
        "max_memory_allocated": lambda *_: device.peak,
        "reset_peak_memory_stats": reset,
        "is_bf16_supported": lambda including_emulation=True: device.bf16 or including_emulation,
        "get_device_name": lambda *_: "pretend GPU",
        "get_device_capability": lambda *_: (9 if device.bf16 else 7, 0),
        "get_device_properties": properties,
        "get_rng_state": lambda *_: numbers.clone(),
        "set_rng_state": lambda *_: None,
        "is_current_stream_capturing": lambda: state.stream in device.recordings,
        "current_stream": _Nothing,
        "default_stream": _Nothing,
        "Stream": _Nothing,
        "Event": _Nothing,
        "CUDAGraph": Graph,
        "stream": lambda stream: being(stream=stream),
        "device": lambda *_: contextlib.nullcontext(),
    }


def install() -> None:
    """Let this process have a GPU."""
    import accelerate  # noqa: F401  # these look for a real GPU, once
    import bitsandbytes  # noqa: F401

    for name, value in _torch_cuda().items():
        setattr(torch.cuda, name, value)
    # what a custom function saves is compared where no mode looks
    checks = torch.utils.checkpoint._allowed_determinism_checks_to_fns
    checks["default"] = lambda x: {"shape": x.shape, "dtype": x.dtype}
    generator = _AnyGenerator("Generator", (), {})
    torch.Generator = torch._C.Generator = generator  # type: ignore[misc, assignment]
    real = torch.autocast

    class Autocast(real):  # type: ignore[misc, valid-type]
        def __init__(self, device_type: str, *args: Any, **kwargs: Any) -> None:
            super().__init__("cpu" if device_type == "cuda" else device_type, *args, **kwargs)

    torch.autocast = torch.amp.autocast = Autocast  # type: ignore[misc]
    run = threading.Thread.run

    def watched(thread: threading.Thread) -> None:
        start()  # modes belong to a thread
        run(thread)

    threading.Thread.run = watched  # type: ignore[method-assign]
    start()


def pytest_configure() -> None:
    install()


def pytest_runtest_setup() -> None:
    start()
