//! Values on the command line, and numbers for people.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A number of bytes: `4096`, `64KiB`, `1.5GiB`, `2GB`.
///
/// Suffixes are of any case and may stand behind a space: powers of 1024 with an `i` (`KiB`, `MiB`,
/// `GiB`, `TiB`), powers of 1000 without (`KB` or `K`, ...).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ByteSize(pub(crate) usize);

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, suffix) = text.split_at(digits);
        let unit: u64 = match suffix.trim_start().to_ascii_lowercase().as_str() {
            "" | "b" => 1,
            "k" | "kb" => 1000,
            "m" | "mb" => 1000_u64.pow(2),
            "g" | "gb" => 1000_u64.pow(3),
            "t" | "tb" => 1000_u64.pow(4),
            "kib" => 1 << 10,
            "mib" => 1 << 20,
            "gib" => 1 << 30,
            "tib" => 1 << 40,
            _ => return Err(format!("unknown unit {suffix:?}; use KiB, MiB, GiB, KB, MB or GB")),
        };
        let bytes = match number.parse::<u64>() {
            Ok(whole) => whole.checked_mul(unit).and_then(|bytes| usize::try_from(bytes).ok()),
            Err(_) => fraction_of(number, unit)?,
        };
        match bytes {
            Some(0) => Err("at least 1 byte is needed".into()),
            Some(bytes) => Ok(Self(bytes)),
            None => Err(format!("{text} is more than this machine can address")),
        }
    }
}

/// As it could be written on a command line: `64 KiB`, `1 GB`, `65537 B`.
impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [
            (1 << 30, "GiB"),
            (1 << 20, "MiB"),
            (1 << 10, "KiB"),
            (1_000_000_000, "GB"),
            (1_000_000, "MB"),
            (1000, "KB"),
        ];
        match units.into_iter().find(|(unit, _)| self.0 > 0 && self.0.is_multiple_of(*unit)) {
            Some((unit, name)) => write!(f, "{} {name}", self.0 / unit),
            None => write!(f, "{} B", self.0),
        }
    }
}

/// Above 2^53 a float is no longer exact to the byte.
const EXACT_IN_FLOAT: f64 = 9_007_199_254_740_992.0;

fn fraction_of(number: &str, unit: u64) -> Result<Option<usize>, String> {
    let bytes =
        number.parse::<f64>().map_err(|_| format!("{number:?} is not a number of bytes"))? * unit as f64;
    if !bytes.is_finite() || bytes > EXACT_IN_FLOAT {
        return Ok(None);
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "checked above; no sign is parsed"
    )]
    let whole = bytes as u64;
    Ok(usize::try_from(whole).ok())
}

/// A positive number of seconds, such as `300` or `0.5`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seconds(pub(crate) Duration);

/// A year: longer is a slip, and far longer overflows the clock.
const SECONDS_MAX: f64 = 365.0 * 86_400.0;

impl FromStr for Seconds {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let seconds: f64 = text.parse().map_err(|_| "not a number of seconds".to_owned())?;
        if !(seconds > 0.0 && seconds <= SECONDS_MAX) {
            return Err(format!("must be above 0 and at most {SECONDS_MAX} seconds"));
        }
        Duration::try_from_secs_f64(seconds).map(Self).map_err(|error| error.to_string())
    }
}

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.as_secs_f64())
    }
}

/// `HOST:PORT`, where an IPv6 address stands in brackets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HostPort {
    /// A name or an address, without brackets.
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl FromStr for HostPort {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (host, port) = text.rsplit_once(':').ok_or("must be HOST:PORT")?;
        let port = port.parse().map_err(|_| format!("{port:?} is not a port from 0 to 65535"))?;
        let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let host = match bracketed {
            Some(host) => host,
            None if host.contains(':') => {
                return Err("an IPv6 address must be in brackets, as in [::1]:4000".into());
            }
            None => host,
        };
        if host.is_empty() {
            return Err("the host is missing; must be HOST:PORT".into());
        }
        Ok(Self { host: host.to_owned(), port })
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

/// Bytes as a person reads them: `12 bytes`, `1.50 MiB`.
pub(crate) struct Size(pub(crate) u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
        if self.0 < 1024 {
            return Count(self.0, "byte").fmt(f);
        }
        let mut value = self.0 as f64 / 1024.0;
        let mut unit = 0;
        while value >= 1024.0 && unit + 1 < UNITS.len() {
            value /= 1024.0;
            unit += 1;
        }
        write!(f, "{value:.2} {}", UNITS[unit])
    }
}

/// A number with its noun: `1 item`, `2 items`.
pub(crate) struct Count(pub(crate) u64, pub(crate) &'static str);

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}{}", self.0, self.1, if self.0 == 1 { "" } else { "s" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(text: &str) -> Result<usize, String> {
        text.parse().map(|ByteSize(bytes)| bytes)
    }

    #[test]
    fn sizes_take_binary_and_decimal_suffixes() {
        for (text, expected) in [
            ("1", 1),
            ("4096b", 4096),
            ("64KiB", 65_536),
            ("64 kib", 65_536),
            ("1.5GiB", 1_610_612_736),
            ("2GB", 2_000_000_000),
            ("3M", 3_000_000),
            ("9007199254740993", 9_007_199_254_740_993),
        ] {
            assert_eq!(bytes(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn sizes_are_shown_in_the_largest_unit_that_they_fill() {
        for text in ["1 B", "1023 B", "64 KiB", "5 KB", "1 GB", "3 GiB", "1000 MiB", "65537 B"] {
            assert_eq!(text.parse::<ByteSize>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn sizes_that_are_none_are_refused() {
        for text in ["", "0", "0.2", "KiB", "-1", "1XiB", "1.2.3", "1e9", "99999999999TiB", "9e300", "nan"] {
            assert!(bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn seconds_are_positive_and_bounded() {
        assert_eq!("0.25".parse(), Ok(Seconds(Duration::from_millis(250))));
        for text in ["0", "-1", "nan", "inf", "1e30", "soon", ""] {
            assert!(text.parse::<Seconds>().is_err(), "{text}");
        }
    }

    #[test]
    fn hosts_are_names_or_addresses_and_keep_their_brackets_when_shown() {
        for (text, host, port) in
            [("localhost:1", "localhost", 1), ("127.0.0.1:0", "127.0.0.1", 0), ("[::1]:65535", "::1", 65_535)]
        {
            let parsed: HostPort = text.parse().unwrap();
            assert_eq!((parsed.host.as_str(), parsed.port), (host, port));
            assert_eq!(parsed.to_string(), text);
        }
    }

    #[test]
    fn hosts_without_port_name_or_brackets_are_refused() {
        for text in
            ["", "localhost", ":4000", "[]:4000", "localhost:", "localhost:65536", "::1:4000", "[::1]"]
        {
            assert!(text.parse::<HostPort>().is_err(), "{text}");
        }
    }

    #[test]
    fn numbers_read_well() {
        assert_eq!(Size(1).to_string(), "1 byte");
        assert_eq!(Size(1023).to_string(), "1023 bytes");
        assert_eq!(Size(1536 << 10).to_string(), "1.50 MiB");
        assert_eq!(Count(0, "item").to_string(), "0 items");
    }
}
