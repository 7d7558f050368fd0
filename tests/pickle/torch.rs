//! Against Python and torch themselves, both ways, where `KVPIPE_TORCH_PYTHON` names a Python that has
//! torch 2.5 or later. Elsewhere these tests say so and pass.

use std::path::Path;

use bytes::Bytes;
use kvpipe::tensor::{DType, Shape, Tensor};
use kvpipe::wire::metadata::TensorMetadata;
use kvpipe::wire::pickle::{Limits, decode, encode};
use kvpipe::wire::{Metadata, Object, UniqueId};
use serde::{Deserialize, Serialize};

use crate::python::{PYTHON_WITHIN, python};

/// Runs `script` with the path of `folder`; false if there is no torch.
async fn ran(script: &str, folder: &Path) -> bool {
    let Some(mut python) = python() else { return false };
    let running = python.arg("-c").arg([COMMON, script].concat()).arg(folder).status();
    let status = tokio::time::timeout(PYTHON_WITHIN, running).await.expect("python hangs").unwrap();
    assert!(status.success());
    true
}

/// What a file `n` in the folder holds.
#[derive(Serialize, Deserialize)]
struct Case {
    kind: String,
    #[serde(default)]
    text: String,
    #[serde(default)]
    dtype: String,
    #[serde(default)]
    shape: Vec<usize>,
}

const COMMON: &str = r#"
import ctypes, json, pickle, sys, types, warnings
import torch
warnings.simplefilter("ignore")
folder = sys.argv[1]
MODULE = "vllm.distributed.device_communicators.pynccl_wrapper"
class ncclUniqueId(ctypes.Structure):
    _fields_ = [("internal", ctypes.c_byte * 128)]
ncclUniqueId.__module__ = MODULE
name = ""
for part in MODULE.split("."):
    name = f"{name}.{part}".lstrip(".")
    sys.modules[name] = types.ModuleType(name)
sys.modules[MODULE].ncclUniqueId = ncclUniqueId

def raw(tensor):
    tensor = tensor.detach().resolve_conj().resolve_neg().contiguous()
    # numpy lacks some dtypes.
    return ctypes.string_at(tensor.data_ptr(), tensor.numel() * tensor.element_size())
"#;

const LOADS: &str = r#"
cases = json.load(open(f"{folder}/cases.json"))
for n, case in enumerate(cases):
    got = pickle.loads(open(f"{folder}/{n}.pickle", "rb").read())
    kind = case["kind"]
    if kind == "none":
        assert got is None
    elif kind == "text":
        assert got == case["text"]
    elif kind == "no tensor":
        assert got == {"dtype": None, "shape": None}
        assert list(got) == ["dtype", "shape"]
    elif kind == "metadata":
        assert list(got) == ["dtype", "shape"]
        assert got["dtype"] is getattr(torch, case["dtype"])
        assert type(got["shape"]) is torch.Size and list(got["shape"]) == case["shape"]
    elif kind == "id":
        assert type(got) is ncclUniqueId and bytes(got) == bytes(range(128))
    elif kind == "tensor":
        assert type(got) is torch.Tensor and not got.requires_grad and got.is_contiguous(), case
        assert got.dtype is getattr(torch, case["dtype"]) and list(got.shape) == case["shape"], case
        assert got.stride() == torch.empty(got.shape).stride(), case
        assert raw(got) == open(f"{folder}/{n}.raw", "rb").read(), case
        torch.empty(got.shape, dtype=got.dtype)[...] = got
    else:
        raise AssertionError(kind)
print(f"{len(cases)} pickles of ours load in torch {torch.__version__}, python {sys.version.split()[0]}")
"#;

/// Those that torch has a storage class for.
const LOADABLE: [DType; 12] = [
    DType::UInt8,
    DType::Int8,
    DType::Int16,
    DType::Int32,
    DType::Int64,
    DType::Float16,
    DType::Float32,
    DType::Float64,
    DType::Complex64,
    DType::Complex128,
    DType::Bool,
    DType::BFloat16,
];

const SHAPES: &[&[usize]] =
    &[&[], &[0], &[1], &[300], &[0, 3], &[3, 0], &[2, 3], &[4, 1, 2], &[2, 1, 3, 2], &[1; 14]];

fn tensor(dtype: DType, dims: &[usize]) -> Tensor {
    let length = Shape::new(dims).unwrap().byte_len(dtype).unwrap();
    // A bool is 0 or 1.
    let modulus = if dtype == DType::Bool { 2 } else { 251 };
    let bytes: Vec<u8> = (0..length).map(|index| (index % modulus) as u8).collect();
    Tensor::new(dtype, dims, bytes.into()).unwrap()
}

fn ours() -> Vec<(Case, Object)> {
    let case =
        |kind: &str| Case { kind: kind.into(), text: String::new(), dtype: String::new(), shape: vec![] };
    let shaped = |kind, dtype: DType, dims: &[usize]| Case {
        dtype: dtype.name().into(),
        shape: dims.to_vec(),
        ..case(kind)
    };
    let id = UniqueId(std::array::from_fn(|index| index as u8));
    let mut ours = vec![
        (case("none"), Object::None),
        (case("no tensor"), Object::Metadata(Metadata::None)),
        (case("id"), Object::UniqueId(id)),
    ];
    for text in ["", "barrier_é\0\n", &"x".repeat(256), &"é".repeat(40_000)] {
        ours.push((Case { text: text.into(), ..case("text") }, Object::Text(text.into())));
    }
    for dims in SHAPES.iter().chain(&[&[65_535, 65_536][..], &[1 << 40]]) {
        for &dtype in DType::ALL {
            let metadata = TensorMetadata::new(dtype, Shape::new(dims).unwrap()).unwrap();
            ours.push((shaped("metadata", dtype, dims), Object::Metadata(Metadata::Tensor(metadata))));
        }
    }
    for dims in SHAPES.iter().chain(&[&[70_000][..]]) {
        for dtype in LOADABLE {
            ours.push((shaped("tensor", dtype, dims), Object::Tensor(tensor(dtype, dims))));
        }
    }
    ours
}

#[tokio::test]
async fn python_loads_whatever_we_write() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: String| folder.path().join(name);
    let mut cases = Vec::new();
    for (n, (case, object)) in ours().into_iter().enumerate() {
        std::fs::write(file(format!("{n}.pickle")), encode(&object).unwrap()).unwrap();
        if let Object::Tensor(tensor) = object {
            std::fs::write(file(format!("{n}.raw")), tensor.bytes().unwrap()).unwrap();
        }
        cases.push(case);
    }
    std::fs::write(file("cases.json".into()), serde_json::to_vec(&cases).unwrap()).unwrap();
    ran(LOADS, folder.path()).await;
}

/// Tensors of all dtypes that torch can fill, and views of all kinds, by both of Python's picklers.
const DUMPS: &str = r#"
cases = []
def case(kind, value, dumps, protocol, **more):
    n = len(cases)
    open(f"{folder}/{n}.pickle", "wb").write(dumps(value, protocol))
    if isinstance(value, torch.Tensor):
        more = {"dtype": str(value.dtype).removeprefix("torch."), "shape": list(value.shape)}
        open(f"{folder}/{n}.raw", "wb").write(raw(value))
    cases.append({"kind": kind, **more})

def of_bytes(dtype, *shape):
    count = torch.empty(shape, dtype=torch.uint8).numel() * torch.empty((), dtype=dtype).element_size()
    data = torch.arange(count) % (2 if dtype == torch.bool else 251)
    return data.to(torch.uint8).view(dtype).reshape(shape)

base = torch.arange(120, dtype=torch.float32)
cube = base.view(2, 3, 4, 5)
tensors = {
    "offset": base[2:5], "step": base[1::7], "transposed": cube.view(24, 5).t(), "permuted": cube.permute(3, 1, 0, 2),
    "rows": cube[:, 1], "columns": cube[..., 2], "expanded": torch.tensor([[7.0]]).expand(3, 4),
    "partly expanded": base[:6].view(2, 1, 3).expand(2, 5, 3), "overlapping": base.as_strided((3, 4), (2, 1)),
    "zero dimensions": torch.tensor(1.5), "zero dimensions of more": base[7], "empty": torch.empty(0),
    "empty rows": torch.empty(0, 3), "empty columns": torch.empty(3, 0), "empty view": base[120:],
    "gradient": torch.ones(2, requires_grad=True), "many dimensions": cube.view(2, 1, 3, 1, 4, 1, 5, 1, 1, 1, 1, 1, 1, 1),
    "channels last": base.view(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
    "small": of_bytes(torch.uint8, 3), "below a frame": of_bytes(torch.uint8, 64000),
    "over a frame": of_bytes(torch.uint8, 70000), "5 mib": of_bytes(torch.float32, 5, 1 << 18),
    "5 mib transposed": of_bytes(torch.float32, 1 << 10, 1280).t(),
}
for dtype in [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16, torch.bfloat16,
              torch.float32, torch.float64, torch.complex64, torch.complex128, torch.bool,
              # What torch writes, but can't load.
              torch.complex32, torch.uint16, torch.uint32, torch.uint64, torch.float8_e4m3fn, torch.float8_e5m2,
              torch.float8_e4m3fnuz, torch.float8_e5m2fnuz]:
    tensors[str(dtype)] = of_bytes(dtype, 4, 6)
    tensors[f"{dtype} transposed"] = of_bytes(dtype, 4, 6).t()[1:]

for tensor in tensors.values():
    try:
        assert raw(tensor) == tensor.detach().contiguous().numpy().tobytes()
    except TypeError:
        pass # numpy does not have the dtype
for dumps in (pickle.dumps, pickle._dumps):
    for protocol in (3, 4, 5):
        for name, tensor in tensors.items():
            case("tensor", tensor, dumps, protocol)
        case("id", ncclUniqueId.from_buffer_copy(bytes(range(128))), dumps, protocol)
    for protocol in (2, 3, 4, 5):
        case("none", None, dumps, protocol)
        case("no tensor", {"dtype": None, "shape": None}, dumps, protocol)
        for text in ("", "barrier_é\0\n", "x" * 256, "é" * 40000):
            case("text", text, dumps, protocol, text=text)
        dtypes = {value for value in vars(torch).values() if isinstance(value, torch.dtype)}
        for shape in ((), (0,), (2, 3), (65536, 65535), (1 << 40,), (1,) * 14):
            for dtype in dtypes:
                dtype_name = str(dtype).removeprefix("torch.")
                case("metadata", {"dtype": dtype, "shape": torch.Size(shape)}, dumps, protocol,
                     dtype=dtype_name, shape=shape)
    for value in (
        torch.tensor([1 + 2j]).conj(), torch.tensor([1 + 2j]).conj().imag, torch.nn.Parameter(torch.ones(2)),
        torch.ones(2).to_sparse(), torch.empty(2, device="meta"),
        torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.quint8),
        [], {}, (), 1, 1.5, True, b"bytes", {"dtype": torch.float16}, torch.float16, torch.Size([1]), print,
        {"dtype": torch.float16, "shape": (2, 3)}, ValueError("x"), {1}, "\ud800",
    ):
        for protocol in (2, 3, 4, 5):
            n = len(cases)
            open(f"{folder}/{n}.pickle", "wb").write(dumps(value, protocol))
            cases.append({"kind": "refused", "text": repr(value)})
json.dump(cases, open(f"{folder}/cases.json", "w"))
print(f"{len(cases)} pickles of torch {torch.__version__}, python {sys.version.split()[0]}")
"#;

#[tokio::test]
async fn we_decode_whatever_python_writes_and_refuse_what_is_not_the_protocols() {
    let folder = tempfile::tempdir().unwrap();
    if !ran(DUMPS, folder.path()).await {
        return;
    }
    let file = |name: String| Bytes::from(std::fs::read(folder.path().join(name)).unwrap());
    let cases: Vec<Case> = serde_json::from_slice(&file("cases.json".into())).unwrap();
    for (n, case) in cases.into_iter().enumerate() {
        let decoded = decode(&file(format!("{n}.pickle")), &Limits::default());
        let dtype = case.dtype.parse::<DType>();
        let expected = match &case.kind[..] {
            "refused" => {
                assert!(decoded.is_err(), "{n}, {}: {decoded:?}", case.text);
                continue;
            }
            "none" => Object::None,
            "no tensor" => Object::Metadata(Metadata::None),
            "text" => Object::Text(case.text),
            "id" => Object::UniqueId(UniqueId(std::array::from_fn(|index| index as u8))),
            "metadata" => match dtype {
                Ok(dtype) => {
                    let tensor = TensorMetadata::new(dtype, Shape::new(&case.shape).unwrap());
                    Object::Metadata(Metadata::Tensor(tensor.unwrap()))
                }
                Err(_) => {
                    // A dtype of a torch newer than we know.
                    assert!(decoded.unwrap_err().to_string().contains(&case.dtype));
                    continue;
                }
            },
            _ => {
                let tensor = Tensor::new(dtype.unwrap(), &case.shape[..], file(format!("{n}.raw")));
                Object::Tensor(tensor.unwrap())
            }
        };
        assert!(decoded.as_ref() == Ok(&expected), "{n}: {expected:?}, not {decoded:?}");
    }
}
