//! What the machine can hold, and which of it belongs to which kind of message.

use crate::tensor::DType;

/// Kinds of pickles, each with its own opcodes and globals; a set of them, since a reader does not
/// always know beforehand which one comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kinds(u8);

impl Kinds {
    /// None, a text, or metadata.
    pub(super) const METADATA: Self = Self(1);
    pub(super) const TENSOR: Self = Self(2);
    pub(super) const UNIQUE_ID: Self = Self(4);
    /// One of the five pickles in front of a tensor's data.
    pub(super) const STORAGE: Self = Self(8);
    /// Whatever vLLM sends.
    pub(super) const OBJECT: Self = Self::METADATA.and(Self::TENSOR).and(Self::UNIQUE_ID);

    pub(super) const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub(super) const fn overlap(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// The protocols in which they come. torch writes the pickles of a storage in protocol 2.
    pub(super) const fn protocols(self) -> std::ops::RangeInclusive<u8> {
        if self.overlap(Self::STORAGE) { 2..=2 } else { 2..=5 }
    }
}

/// A value on the stack. What it consists of lies elsewhere, so copying one costs the same whatever
/// it is, and a value that contains itself does no harm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Value<'a> {
    None,
    Bool(bool),
    Int(i64),
    /// An integer of more than eight bytes: those, little endian.
    Long(&'a [u8]),
    Text(&'a str),
    /// Where in the message they are.
    Bytes(Span),
    Global(Global),
    /// Where its members are in [`Pickle`](super::machine::Pickle).
    Tuple(Span),
    Dict(Owner),
    List(Owner),
    /// A call that another unpickler would make, and its arguments.
    Call(Global, Span),
    /// A reference to something outside of the pickle.
    Reference(Span),
}

impl Value<'_> {
    /// What it is, for errors.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::None => "None",
            Self::Bool(_) => "a bool",
            Self::Int(_) | Self::Long(_) => "an integer",
            Self::Text(_) => "a text",
            Self::Bytes(_) => "bytes",
            Self::Global(_) => "a global",
            Self::Tuple(_) => "a tuple",
            Self::Dict(_) => "a dict",
            Self::List(_) => "a list",
            Self::Call(..) => "a call",
            Self::Reference(_) => "a persistent id",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) start: usize,
    pub(super) len: usize,
}

impl Span {
    pub(super) fn range(self) -> std::ops::Range<usize> {
        self.start..self.start + self.len
    }
}

/// Which dict or list of the pickle it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Owner(pub(super) usize);

/// Everything that a pickle may name. A name is all that it is: nothing is imported or called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Global {
    Size,
    DType(DType),
    RebuildTensorV2,
    RebuildTensorV3,
    LoadFromBytes,
    OrderedDict,
    CtypesUnpickle,
    NcclUniqueId,
    /// torch's storage of this dtype.
    TypedStorage(DType),
    /// torch's storage of bytes.
    UntypedStorage,
}

impl Global {
    /// Those that are no dtype and no typed storage.
    const OTHERS: [Self; 8] = [
        Self::Size,
        Self::RebuildTensorV2,
        Self::RebuildTensorV3,
        Self::LoadFromBytes,
        Self::OrderedDict,
        Self::CtypesUnpickle,
        Self::NcclUniqueId,
        Self::UntypedStorage,
    ];

    /// Module and name.
    pub(super) fn name(self) -> (&'static str, &'static str) {
        match self {
            Self::Size => ("torch", "Size"),
            Self::DType(dtype) => ("torch", dtype.name()),
            Self::RebuildTensorV2 => ("torch._utils", "_rebuild_tensor_v2"),
            Self::RebuildTensorV3 => ("torch._utils", "_rebuild_tensor_v3"),
            Self::LoadFromBytes => ("torch.storage", "_load_from_bytes"),
            Self::OrderedDict => ("collections", "OrderedDict"),
            Self::CtypesUnpickle => ("_ctypes", "_unpickle"),
            Self::NcclUniqueId => ("vllm.distributed.device_communicators.pynccl_wrapper", "ncclUniqueId"),
            Self::TypedStorage(dtype) => ("torch", storage_class(dtype).unwrap_or_default()),
            Self::UntypedStorage => ("torch.storage", "UntypedStorage"),
        }
    }

    pub(super) fn named(module: &str, name: &str) -> Option<Self> {
        let storages = STORAGES.iter().map(|(dtype, _)| Self::TypedStorage(*dtype));
        let dtypes = DType::ALL.iter().map(|dtype| Self::DType(*dtype));
        let mut known = Self::OTHERS.into_iter().chain(storages).chain(dtypes);
        known.find(|global| global.name() == (module, name))
    }

    pub(super) const fn kinds(self) -> Kinds {
        match self {
            Self::Size => Kinds::METADATA,
            Self::DType(_) => Kinds::METADATA.and(Kinds::TENSOR),
            Self::RebuildTensorV2 | Self::RebuildTensorV3 | Self::LoadFromBytes | Self::OrderedDict => {
                Kinds::TENSOR
            }
            Self::CtypesUnpickle | Self::NcclUniqueId => Kinds::UNIQUE_ID,
            Self::TypedStorage(_) | Self::UntypedStorage => Kinds::STORAGE,
        }
    }
}

/// The class of torch's storage of `dtype`, where there is one. Without one torch writes bytes, and
/// can't load the tensor back (2.8 and 2.15: `UntypedStorage` has no dtype).
pub(super) fn storage_class(dtype: DType) -> Option<&'static str> {
    STORAGES.iter().find(|(stored, _)| *stored == dtype).map(|(_, class)| *class)
}

const STORAGES: [(DType, &str); 12] = [
    (DType::Float32, "FloatStorage"),
    (DType::Float64, "DoubleStorage"),
    (DType::Float16, "HalfStorage"),
    (DType::BFloat16, "BFloat16Storage"),
    (DType::Int8, "CharStorage"),
    (DType::UInt8, "ByteStorage"),
    (DType::Int16, "ShortStorage"),
    (DType::Int32, "IntStorage"),
    (DType::Int64, "LongStorage"),
    (DType::Bool, "BoolStorage"),
    (DType::Complex64, "ComplexFloatStorage"),
    (DType::Complex128, "ComplexDoubleStorage"),
];
