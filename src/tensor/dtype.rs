//! What one element of a tensor is.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};

/// Declares [`DType`] and every fact about it in one table.
///
/// Columns: variant = wire code, torch name, bytes of one item, safetensors name, documentation.
macro_rules! dtypes {
    ($($variant:ident = $code:literal, $name:literal, $item_bytes:literal, $safetensors:expr, $doc:literal;)*) => {
        /// The type of a tensor's elements: every name that torch 2.8 has, and nothing else.
        ///
        /// kvpipe moves elements and does not compute with them, so a dtype is a name, an item size
        /// and a wire code.
        ///
        /// # Packed dtypes
        ///
        /// torch's facts (2.8), which [`Shape::byte_len`](super::Shape::byte_len) follows to the byte:
        ///
        /// - `int1`..`int7`, `uint1`..`uint7`, `bits1x8`, `bits2x4`, `bits4x2`, `bits8`: one element is
        ///   one whole byte, whatever the name says.
        /// - `float4_e2m1fn_x2`: one byte holds two 4-bit values, and that *pair* is one element.
        /// - `quint4x2`, `quint2x4`: the item size is 1, but two or four elements share it. Every row
        ///   (the last dimension) begins on a new byte; see [`elements_per_item`](Self::elements_per_item).
        ///   From `get_sub_byte_tensor_size` in torch's `aten/src/ATen/quantized/Quantizer.cpp`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum DType {
            $(#[doc = $doc] $variant = $code,)*
        }

        impl DType {
            /// Every dtype, by ascending [`code`](Self::code).
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The dtype's canonical name in torch, such as `bfloat16`.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// The bytes of one storage item: what torch calls `itemsize`.
            ///
            /// That is one element, except for the two dtypes with more than one
            /// [element per item](Self::elements_per_item). The length of a payload is
            /// [`Shape::byte_len`](super::Shape::byte_len), not a product with this number.
            #[must_use]
            pub const fn item_bytes(self) -> usize {
                match self { $(Self::$variant => $item_bytes,)* }
            }

            /// The dtype of this wire code.
            #[must_use]
            pub const fn from_code(code: u8) -> Option<Self> {
                match code { $($code => Some(Self::$variant),)* _ => None }
            }

            /// The dtype's name in a safetensors header (0.8), such as `BF16`; `None` where that format
            /// has no dtype with the same elements.
            ///
            /// `float4_e2m1fn_x2` has none: safetensors' `F4` counts single 4-bit values where torch
            /// counts pairs. The module `tensor::safetensors` converts between the two.
            #[must_use]
            pub const fn safetensors_name(self) -> Option<&'static str> {
                match self { $(Self::$variant => $safetensors,)* }
            }

            fn from_canonical_name(name: &str) -> Option<Self> {
                match name { $($name => Some(Self::$variant),)* _ => None }
            }
        }
    };
}

// The codes are those of `c10::ScalarType` in torch 2.8 and are frozen: peers of different kvpipe
// versions exchange them. A new dtype takes a new code; a code is never used again.
dtypes! {
    UInt8 = 0, "uint8", 1, Some("U8"), "Unsigned byte.";
    Int8 = 1, "int8", 1, Some("I8"), "Signed byte.";
    Int16 = 2, "int16", 2, Some("I16"), "Signed 16-bit integer; torch's `short`.";
    Int32 = 3, "int32", 4, Some("I32"), "Signed 32-bit integer; torch's `int`.";
    Int64 = 4, "int64", 8, Some("I64"), "Signed 64-bit integer; torch's `long`.";
    Float16 = 5, "float16", 2, Some("F16"), "IEEE half precision; torch's `half`.";
    Float32 = 6, "float32", 4, Some("F32"), "IEEE single precision; torch's `float`.";
    Float64 = 7, "float64", 8, Some("F64"), "IEEE double precision; torch's `double`.";
    Complex32 = 8, "complex32", 4, None, "Two `float16`, real then imaginary; torch's `chalf`.";
    Complex64 = 9, "complex64", 8, Some("C64"), "Two `float32`, real then imaginary; torch's `cfloat`.";
    Complex128 = 10, "complex128", 16, None, "Two `float64`, real then imaginary; torch's `cdouble`.";
    Bool = 11, "bool", 1, Some("BOOL"), "One byte, 0 or 1.";
    QInt8 = 12, "qint8", 1, None, "Quantized signed byte; its scale does not travel with it.";
    QUInt8 = 13, "quint8", 1, None, "Quantized unsigned byte; its scale does not travel with it.";
    QInt32 = 14, "qint32", 4, None, "Quantized 32-bit integer; its scale does not travel with it.";
    BFloat16 = 15, "bfloat16", 2, Some("BF16"), "The upper half of a `float32`.";
    QUInt4x2 = 16, "quint4x2", 1, None, "Quantized 4-bit integer, two to a byte.";
    QUInt2x4 = 17, "quint2x4", 1, None, "Quantized 2-bit integer, four to a byte.";
    Bits1x8 = 18, "bits1x8", 1, None, "A byte of eight uninterpreted single bits, one element.";
    Bits2x4 = 19, "bits2x4", 1, None, "A byte of four uninterpreted bit pairs, one element.";
    Bits4x2 = 20, "bits4x2", 1, None, "A byte of two uninterpreted nibbles, one element.";
    Bits8 = 21, "bits8", 1, None, "Eight uninterpreted bits.";
    Bits16 = 22, "bits16", 2, None, "Sixteen uninterpreted bits.";
    Float8E5m2 = 23, "float8_e5m2", 1, Some("F8_E5M2"), "8-bit float, 5 exponent and 2 mantissa bits.";
    Float8E4m3fn = 24, "float8_e4m3fn", 1, Some("F8_E4M3"), "8-bit float, 4 exponent and 3 mantissa bits, no infinities.";
    Float8E5m2fnuz = 25, "float8_e5m2fnuz", 1, Some("F8_E5M2FNUZ"), "As `float8_e5m2`, without infinities and negative zero.";
    Float8E4m3fnuz = 26, "float8_e4m3fnuz", 1, Some("F8_E4M3FNUZ"), "As `float8_e4m3fn`, without negative zero.";
    UInt16 = 27, "uint16", 2, Some("U16"), "Unsigned 16-bit integer.";
    UInt32 = 28, "uint32", 4, Some("U32"), "Unsigned 32-bit integer.";
    UInt64 = 29, "uint64", 8, Some("U64"), "Unsigned 64-bit integer.";
    UInt1 = 30, "uint1", 1, None, "Unsigned 1-bit integer in a byte of its own; torch's `bit`.";
    UInt2 = 31, "uint2", 1, None, "Unsigned 2-bit integer in a byte of its own.";
    UInt3 = 32, "uint3", 1, None, "Unsigned 3-bit integer in a byte of its own.";
    UInt4 = 33, "uint4", 1, None, "Unsigned 4-bit integer in a byte of its own.";
    UInt5 = 34, "uint5", 1, None, "Unsigned 5-bit integer in a byte of its own.";
    UInt6 = 35, "uint6", 1, None, "Unsigned 6-bit integer in a byte of its own.";
    UInt7 = 36, "uint7", 1, None, "Unsigned 7-bit integer in a byte of its own.";
    Int1 = 37, "int1", 1, None, "Signed 1-bit integer in a byte of its own.";
    Int2 = 38, "int2", 1, None, "Signed 2-bit integer in a byte of its own.";
    Int3 = 39, "int3", 1, None, "Signed 3-bit integer in a byte of its own.";
    Int4 = 40, "int4", 1, None, "Signed 4-bit integer in a byte of its own.";
    Int5 = 41, "int5", 1, None, "Signed 5-bit integer in a byte of its own.";
    Int6 = 42, "int6", 1, None, "Signed 6-bit integer in a byte of its own.";
    Int7 = 43, "int7", 1, None, "Signed 7-bit integer in a byte of its own.";
    Float8E8m0fnu = 44, "float8_e8m0fnu", 1, Some("F8_E8M0"), "An unsigned power of two: 8 exponent bits only.";
    Float4E2m1fnX2 = 45, "float4_e2m1fn_x2", 1, None, "A byte of two 4-bit floats; the pair is one element.";
}

impl DType {
    /// The code by which kvpipe's native wire format names this dtype. Frozen: the value of a dtype
    /// never changes and is never given to another one.
    #[must_use]
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// How many elements share one storage item: 2 for `quint4x2`, 4 for `quint2x4`, else 1.
    #[must_use]
    pub const fn elements_per_item(self) -> usize {
        match self {
            Self::QUInt4x2 => 2,
            Self::QUInt2x4 => 4,
            _ => 1,
        }
    }

    /// The dtype of this name in torch: a canonical name or one of torch's aliases (`half`, `float`,
    /// `double`, `long`, `int`, `short`, `cfloat`, `cdouble`, `chalf`, `bit`), with or without a
    /// leading `torch.`.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        let name = name.strip_prefix("torch.").unwrap_or(name);
        Self::from_canonical_name(name).or(match name {
            "half" => Some(Self::Float16),
            "float" => Some(Self::Float32),
            "double" => Some(Self::Float64),
            "short" => Some(Self::Int16),
            "int" => Some(Self::Int32),
            "long" => Some(Self::Int64),
            "chalf" => Some(Self::Complex32),
            "cfloat" => Some(Self::Complex64),
            "cdouble" => Some(Self::Complex128),
            "bit" => Some(Self::UInt1),
            _ => None,
        })
    }

    /// The dtype of this name in a safetensors header; the inverse of
    /// [`safetensors_name`](Self::safetensors_name), so `F4` and the `F6` names are `None`.
    #[must_use]
    pub fn from_safetensors_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|dtype| dtype.safetensors_name() == Some(name))
    }

    /// The name that kvpipe's machine-readable output uses: the
    /// [safetensors name](Self::safetensors_name) or, where there is none, the torch name in upper
    /// case. No two dtypes share one.
    #[must_use]
    pub fn json_name(self) -> Cow<'static, str> {
        match self.safetensors_name() {
            Some(name) => Cow::Borrowed(name),
            None => Cow::Owned(self.name().to_ascii_uppercase()),
        }
    }
}

/// The torch name.
impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// As [`DType::from_name`]; an unknown name is an [`Error::Misuse`] that quotes it.
impl FromStr for DType {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::from_name(name).ok_or_else(|| Error::Misuse(format!("unknown dtype {name:?}")))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Every dtype of torch 2.8 with its item size, in alphabetical order.
    const TORCH: &str = "bfloat16 2,bits16 2,bits1x8 1,bits2x4 1,bits4x2 1,bits8 1,bool 1,complex128 16,\
        complex32 4,complex64 8,float16 2,float32 4,float4_e2m1fn_x2 1,float64 8,float8_e4m3fn 1,\
        float8_e4m3fnuz 1,float8_e5m2 1,float8_e5m2fnuz 1,float8_e8m0fnu 1,int1 1,int16 2,int2 1,int3 1,\
        int32 4,int4 1,int5 1,int6 1,int64 8,int7 1,int8 1,qint32 4,qint8 1,quint2x4 1,quint4x2 1,quint8 1,\
        uint1 1,uint16 2,uint2 1,uint3 1,uint32 4,uint4 1,uint5 1,uint6 1,uint64 8,uint7 1,uint8 1";

    #[test]
    fn the_names_and_item_sizes_are_those_of_torch_and_no_others() {
        let ours: BTreeSet<String> =
            DType::ALL.iter().map(|dtype| format!("{dtype} {}", dtype.item_bytes())).collect();
        let torch: BTreeSet<String> = TORCH.split(',').map(String::from).collect();
        assert_eq!(ours, torch);
    }

    #[test]
    fn names_and_codes_lead_back_to_their_dtype() {
        for (position, &dtype) in DType::ALL.iter().enumerate() {
            assert_eq!(usize::from(dtype.code()), position);
            assert_eq!(DType::from_code(dtype.code()), Some(dtype));
            assert_eq!(DType::from_name(dtype.name()), Some(dtype));
            assert_eq!(format!("torch.{dtype}").parse::<DType>().unwrap(), dtype);
            if let Some(name) = dtype.safetensors_name() {
                assert_eq!(DType::from_safetensors_name(name), Some(dtype));
            }
        }
        for code in DType::ALL.len() as u8..=u8::MAX {
            assert_eq!(DType::from_code(code), None);
        }
    }

    /// These bytes are on the wire between released versions; this test may grow, never change.
    #[test]
    fn wire_codes_are_frozen() {
        let by_code: Vec<&str> = DType::ALL.iter().map(|dtype| dtype.name()).collect();
        assert_eq!(
            by_code.join(" "),
            "uint8 int8 int16 int32 int64 float16 float32 float64 complex32 complex64 complex128 bool \
             qint8 quint8 qint32 bfloat16 quint4x2 quint2x4 bits1x8 bits2x4 bits4x2 bits8 bits16 \
             float8_e5m2 float8_e4m3fn float8_e5m2fnuz float8_e4m3fnuz uint16 uint32 uint64 \
             uint1 uint2 uint3 uint4 uint5 uint6 uint7 int1 int2 int3 int4 int5 int6 int7 \
             float8_e8m0fnu float4_e2m1fn_x2"
        );
    }

    #[test]
    fn aliases_are_those_of_torch() {
        let aliases = "half=float16 float=float32 double=float64 long=int64 int=int32 short=int16 \
                       cfloat=complex64 cdouble=complex128 chalf=complex32 bit=uint1";
        for alias in aliases.split_whitespace() {
            let (alias, name) = alias.split_once('=').unwrap();
            assert_eq!(DType::from_name(alias).map(DType::name), Some(name));
        }
    }

    #[test]
    fn unknown_names_are_refused_and_quoted() {
        for name in ["", "Float32", "float128", "torch.", "torch.torch.half", " half", "bcomplex32"] {
            let error = name.parse::<DType>().unwrap_err();
            assert_eq!(error.to_string(), format!("unknown dtype {name:?}"));
        }
        for name in ["F4", "F6_E2M3", "F6_E3M2", "bf16", ""] {
            assert_eq!(DType::from_safetensors_name(name), None, "{name}");
        }
    }

    #[test]
    fn json_names_are_distinct() {
        let names: BTreeSet<_> = DType::ALL.iter().map(|dtype| dtype.json_name()).collect();
        assert_eq!(names.len(), DType::ALL.len());
        assert_eq!(DType::Float8E4m3fn.json_name(), "F8_E4M3");
        assert_eq!(DType::Complex128.json_name(), "COMPLEX128");
    }
}
