//! The one place that names bincode.
//!
//! bincode 2.0.1 is unmaintained (RUSTSEC-2025-0141), so it must be easy to replace: messages see
//! only [`Message`], [`Writer`] and [`Reader`], public types implement none of its traits, and the
//! tests produce the same bytes with wincode. A message reads and writes its fields one by one,
//! which lets it answer with its own [`DecodeError`]; bincode's `Decode` could only return text.

use bincode::config::{Configuration, Fixint, Limit, LittleEndian};

use super::error::DecodeError;

/// More than any message needs; longer input is refused before bincode sees it.
const LIMIT_BYTES: usize = 4096;

/// The limit is bincode's own guard: without one, a claimed length of 2^60 aborts the process.
const CONFIG: Configuration<LittleEndian, Fixint, Limit<LIMIT_BYTES>> =
    bincode::config::standard().with_fixed_int_encoding().with_limit::<LIMIT_BYTES>();

/// Something with exactly one encoding: `read` accepts what `write` produces, and nothing else.
pub(super) trait Message: Sized {
    /// Appends every field.
    fn write(&self, out: &mut Writer<'_>);

    /// Takes every field from the front of `input`. What is left is the caller's concern.
    fn read(input: &mut Reader<'_>) -> Result<Self, DecodeError>;
}

/// Appends `message`. Allocates only if `out` has to grow.
pub(super) fn encode_into<M: Message>(message: &M, out: &mut Vec<u8>) {
    message.write(&mut Writer(out));
}

/// The message that `bytes` is, from the first byte to the last.
pub(super) fn decode<M: Message>(bytes: &[u8]) -> Result<M, DecodeError> {
    if bytes.len() > LIMIT_BYTES {
        return Err(DecodeError::MessageTooLong { bytes: bytes.len(), limit: LIMIT_BYTES });
    }
    let mut input = Reader(bytes);
    let message = M::read(&mut input)?;
    match input.0.len() {
        0 => Ok(message),
        count => Err(DecodeError::TrailingBytes { count }),
    }
}

/// Where a [`Message`] puts its fields.
pub(super) struct Writer<'a>(&'a mut Vec<u8>);

impl Writer<'_> {
    /// An integer, a bool, an array of bytes, a text, or an option of these.
    pub(super) fn put<T: bincode::Encode + ?Sized>(&mut self, field: &T) {
        if let Err(error) = bincode::encode_into_writer(field, &mut *self, CONFIG) {
            // The Writer below never refuses, and such fields have no other way to fail.
            unreachable!("bincode failed to write to memory: {error}");
        }
    }
}

impl bincode::enc::write::Writer for Writer<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), bincode::error::EncodeError> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }
}

/// What is left of the input of a [`Message`].
pub(super) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// The next field: an integer, a bool, an array of bytes, or an option of these.
    pub(super) fn take<T: bincode::Decode<()>>(&mut self) -> Result<T, DecodeError> {
        let (field, consumed) = bincode::decode_from_slice(self.0, CONFIG)?;
        self.0 = self.0.get(consumed..).ok_or(DecodeError::Truncated)?;
        Ok(field)
    }

    /// The next field, a text of at most `limit` bytes without control characters, borrowed from
    /// the input. bincode would give the text too, but not tell which limit it broke.
    pub(super) fn take_text(&mut self, what: &'static str, limit: usize) -> Result<&'a str, DecodeError> {
        let bytes = self.take::<u64>()?;
        let length = usize::try_from(bytes).ok().filter(|length| *length <= limit);
        let Some(length) = length else {
            return Err(DecodeError::TextTooLong { what, bytes, limit });
        };
        let (text, rest) = self.0.split_at_checked(length).ok_or(DecodeError::Truncated)?;
        self.0 = rest;
        let text = str::from_utf8(text).map_err(|_| DecodeError::NotUtf8 { what })?;
        match text.chars().find(|character| character.is_control()) {
            None => Ok(text),
            Some(found) => Err(DecodeError::ControlCharacter { what, found }),
        }
    }
}

impl From<bincode::error::DecodeError> for DecodeError {
    fn from(error: bincode::error::DecodeError) -> Self {
        use bincode::error::DecodeError as Bincode;
        match error {
            Bincode::UnexpectedEnd { .. } => Self::Truncated,
            Bincode::InvalidBooleanValue(found) => Self::UnknownTag { what: "bool", found: found.into() },
            Bincode::UnexpectedVariant { found, .. } => Self::UnknownTag { what: "option tag", found },
            other => Self::Malformed(other.to_string()),
        }
    }
}
