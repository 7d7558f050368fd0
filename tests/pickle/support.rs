//! Pickles put together by hand, with a lie in them where a test wants one.

use bytes::Bytes;
use kvpipe::wire::Object;
use kvpipe::wire::pickle::{Limits, decode};

/// `body` between the protocol and STOP.
pub(crate) fn pickle(body: &[u8]) -> Bytes {
    [b"\x80\x04", body, b"."].concat().into()
}

pub(crate) fn text(text: &str) -> Vec<u8> {
    [b"X", &(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat()
}

pub(crate) fn global(module: &str, name: &str) -> Vec<u8> {
    [text(module), text(name), b"\x93".to_vec()].concat()
}

pub(crate) fn int(number: i64) -> Vec<u8> {
    [b"\x8a\x08", &number.to_le_bytes()[..]].concat()
}

pub(crate) fn tuple(items: &[Vec<u8>]) -> Vec<u8> {
    [b"(", &items.concat()[..], b"t"].concat()
}

pub(crate) fn ints(numbers: &[i64]) -> Vec<u8> {
    tuple(&numbers.iter().copied().map(int).collect::<Vec<_>>())
}

/// Metadata of a float16, with this for its shape.
pub(crate) fn metadata_of(shape: &[u8]) -> Bytes {
    let (dtype, name) = (text("dtype"), text("shape"));
    pickle(&[b"}(", &dtype[..], &global("torch", "float16"), &name, shape, b"u"].concat())
}

pub(crate) fn size(numbers: &[i64]) -> Vec<u8> {
    [&global("torch", "Size")[..], &ints(numbers), b"\x85R"].concat()
}

pub(crate) fn refusal(message: impl Into<Bytes>) -> String {
    decode(&message.into(), &Limits::default()).unwrap_err().to_string()
}

/// A tensor's pickle, part by part; what [`Default`] gives is a float32 `[1.0, 2.0]`.
#[derive(Clone)]
pub(crate) struct Parts {
    pub(crate) rebuild: &'static str,
    /// The module and name of the storage's class, by GLOBAL.
    pub(crate) class: &'static str,
    pub(crate) magic: Vec<u8>,
    pub(crate) version: i64,
    /// NEWTRUE or NEWFALSE.
    pub(crate) little_endian: u8,
    pub(crate) device: &'static str,
    pub(crate) count: i64,
    pub(crate) view: Vec<u8>,
    pub(crate) keys: Vec<&'static str>,
    pub(crate) repeated_count: i64,
    pub(crate) data: Vec<u8>,
    pub(crate) offset: Vec<u8>,
    pub(crate) size: Vec<u8>,
    pub(crate) stride: Vec<u8>,
    pub(crate) requires_grad: u8,
    pub(crate) hooks: Vec<u8>,
    /// Behind the hooks.
    pub(crate) more: Vec<Vec<u8>>,
}

impl Default for Parts {
    fn default() -> Self {
        Self {
            rebuild: "_rebuild_tensor_v2",
            class: "torch\nFloatStorage\n",
            magic: hex::decode("8a0a6cfc9c46f9206aa85019").unwrap(),
            version: 1001,
            little_endian: 0x88,
            device: "cpu",
            count: 2,
            view: b"N".to_vec(),
            keys: vec!["0"],
            repeated_count: 2,
            data: [1.0_f32, 2.0].iter().flat_map(|number| number.to_le_bytes()).collect(),
            offset: int(0),
            size: ints(&[2]),
            stride: ints(&[1]),
            requires_grad: 0x89,
            hooks: [&global("collections", "OrderedDict")[..], b")R"].concat(),
            more: Vec::new(),
        }
    }
}

impl Parts {
    /// Of a view of `count` bytes, 0, 1, 2 and so on.
    pub(crate) fn view_of_bytes(count: u8, offset: i64, size: &[i64], stride: &[i64]) -> Self {
        Self {
            class: "torch\nByteStorage\n",
            count: count.into(),
            repeated_count: count.into(),
            data: (0..count).collect(),
            offset: int(offset),
            size: ints(size),
            stride: ints(stride),
            ..Self::default()
        }
    }

    /// The stream that the storage is in.
    pub(crate) fn stream(&self) -> Vec<u8> {
        let inner = |body: &[u8]| [b"\x80\x02", body, b"."].concat();
        let facts = [
            &text("protocol_version")[..],
            &int(self.version),
            &text("little_endian"),
            &[self.little_endian],
            &text("type_sizes"),
            b"}",
        ]
        .concat();
        let class = [b"c", self.class.as_bytes()].concat();
        let reference = tuple(&[
            text("storage"),
            class,
            text("0"),
            text(self.device),
            int(self.count),
            self.view.clone(),
        ]);
        let keys: Vec<u8> = self.keys.iter().flat_map(|key| text(key)).collect();
        [
            inner(&self.magic),
            inner(&int(self.version)),
            inner(&[b"}(", &facts[..], b"u"].concat()),
            inner(&[&reference[..], b"Q"].concat()),
            inner(&[b"](", &keys[..], b"e"].concat()),
            self.repeated_count.to_le_bytes().to_vec(),
            self.data.clone(),
        ]
        .concat()
    }

    pub(crate) fn pickle(&self) -> Bytes {
        self.pickle_around(&self.stream())
    }

    /// The tensor over another stream than its own.
    pub(crate) fn pickle_around(&self, stream: &[u8]) -> Bytes {
        let stored = [
            &global("torch.storage", "_load_from_bytes")[..],
            b"B",
            &(stream.len() as u32).to_le_bytes(),
            stream,
            b"\x85R",
        ]
        .concat();
        let mut arguments = vec![
            stored,
            self.offset.clone(),
            self.size.clone(),
            self.stride.clone(),
            vec![self.requires_grad],
            self.hooks.clone(),
        ];
        arguments.extend_from_slice(&self.more);
        pickle(&[&global("torch._utils", self.rebuild)[..], &tuple(&arguments), b"R"].concat())
    }

    /// The payload that it decodes to.
    #[track_caller]
    pub(crate) fn payload(&self) -> Vec<u8> {
        match decode(&self.pickle(), &Limits::default()) {
            Ok(Object::Tensor(tensor)) => tensor.bytes().unwrap().to_vec(),
            other => panic!("{other:?}"),
        }
    }

    #[track_caller]
    pub(crate) fn refusal(&self) -> String {
        refusal(self.pickle())
    }
}
