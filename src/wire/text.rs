//! The texts inside messages.
//!
//! Both kinds are one line without control characters (Unicode category Cc), so that a peer can't
//! forge log lines or steer a terminal.

use std::fmt;

use super::codec::Reader;
use super::error::DecodeError;
use crate::error::{Error, Result};

/// Words for people, such as the reason of an abort: at most [`MAX_BYTES`](Self::MAX_BYTES) bytes.
///
/// Made from any string: what is too long is cut off, between two characters, and each control
/// character becomes a space.
///
/// ```
/// use kvpipe::wire::text::Text;
///
/// assert_eq!(Text::from("disk full:\n/var").as_str(), "disk full: /var");
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Text(String);

impl Text {
    /// The longest text, in bytes of UTF-8.
    pub const MAX_BYTES: usize = 1024;

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub(super) fn read(what: &'static str, input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        input.take_text(what, Self::MAX_BYTES).map(|text| Self(text.to_owned()))
    }
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        // Cutting first keeps the work bounded. It can't come out longer: a space is one byte.
        let end = (0..=Self::MAX_BYTES.min(text.len())).rev().find(|index| text.is_char_boundary(*index));
        Self(text[..end.unwrap_or(0)].replace(char::is_control, " "))
    }
}

impl From<String> for Text {
    fn from(text: String) -> Self {
        Self::from(text.as_str())
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The name of a group of ranks; both ends of an edge must have the same. At most
/// [`MAX_BYTES`](Self::MAX_BYTES) bytes, and possibly empty. Never altered to fit, since two groups
/// must not become one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupName(String);

impl GroupName {
    /// The longest name, in bytes of UTF-8.
    pub const MAX_BYTES: usize = 255;

    /// The group name that `name` is.
    ///
    /// # Errors
    /// [`Error::Misuse`] if the name is too long or contains a control character.
    pub fn new(name: impl Into<String>) -> Result<Self> {
        let name = name.into();
        if name.len() > Self::MAX_BYTES {
            let (bytes, limit) = (name.len(), Self::MAX_BYTES);
            return Err(Error::Misuse(format!(
                "a group name of {bytes} bytes is over the limit of {limit} bytes"
            )));
        }
        if name.contains(char::is_control) {
            return Err(Error::Misuse(format!("the group name {name:?} contains a control character")));
        }
        Ok(Self(name))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub(super) fn read(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        input.take_text("group name", Self::MAX_BYTES).map(|name| Self(name.to_owned()))
    }
}

impl fmt::Display for GroupName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_text_is_cut_between_two_characters() {
        let text = Text::from("x".to_owned() + &"é".repeat(Text::MAX_BYTES));
        assert_eq!(text.as_str().len(), Text::MAX_BYTES - 1);
        assert!(text.as_str().ends_with('é'));
    }

    #[test]
    fn a_text_of_exactly_the_limit_is_kept_whole() {
        let longest = "x".repeat(Text::MAX_BYTES);
        assert_eq!(Text::from(longest.as_str()).as_str(), longest);
    }

    #[test]
    fn texts_and_names_are_displayed_as_they_are() {
        assert_eq!(format!("[{:>3}] {}", Text::from("a"), GroupName::new("b").unwrap()), "[  a] b");
    }

    #[test]
    fn control_characters_become_spaces() {
        assert_eq!(Text::from("a\r\nb\u{1b}[2Jc\u{85}d").as_str(), "a  b [2Jc d");
    }

    #[test]
    fn a_group_name_is_refused_rather_than_cut() {
        assert!(GroupName::new("g".repeat(GroupName::MAX_BYTES)).is_ok());
        let error = GroupName::new("g".repeat(GroupName::MAX_BYTES + 1)).unwrap_err();
        assert_eq!(error.to_string(), "a group name of 256 bytes is over the limit of 255 bytes");
    }

    #[test]
    fn a_group_name_has_no_control_characters() {
        let error = GroupName::new("a\nb").unwrap_err();
        assert_eq!(error.to_string(), r#"the group name "a\nb" contains a control character"#);
    }
}
