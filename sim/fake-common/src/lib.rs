//! What the fakes of CUDA and NCCL share: switches, calls that have to fail, and where a fake lies.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::{env, fs, io};

/// The comma-separated switches of `text`: `name` or `name=value`.
pub fn switches(text: &str) -> impl Iterator<Item = (&str, &str)> {
    let parts = text.split(',').map(str::trim);
    parts.filter(|part| !part.is_empty()).map(|part| part.split_once('=').unwrap_or((part, "")))
}

/// The value of a switch as a number.
///
/// # Panics
///
/// If it is none: a test whose switch is misspelt must not pass.
pub fn number<T: std::str::FromStr>(name: &str, value: &str) -> T {
    value.parse().unwrap_or_else(|_| panic!("fake: {name}={value}: not a number"))
}

/// Counts the calls of each symbol and says which of them have to fail.
#[derive(Debug, Default)]
pub struct Calls {
    failures: Vec<Failure>,
    counts: Mutex<BTreeMap<&'static str, u64>>,
}

#[derive(Debug)]
struct Failure {
    symbol: String,
    first: u64,
    last: u64,
    code: i32,
}

impl Calls {
    /// Adds a switch's value, `SYMBOL:K:CODE`: the Kth call gives the code. `SYMBOL:K+:CODE`: from the
    /// Kth on.
    ///
    /// # Panics
    ///
    /// If the text is neither.
    pub fn add_failure(&mut self, value: &str) {
        let parts: Vec<&str> = value.split(':').collect();
        let [symbol, call, code] = parts[..] else { panic!("fake: fail={value}: not SYMBOL:K:CODE") };
        let onwards = call.strip_suffix('+');
        let first = number("fail", onwards.unwrap_or(call));
        let last = if onwards.is_some() { u64::MAX } else { first };
        self.failures.push(Failure { symbol: symbol.to_owned(), first, last, code: number("fail", code) });
    }

    /// Counts a call; the code that it has to fail with, if it has to.
    pub fn count(&self, symbol: &'static str) -> Option<i32> {
        let mut counts = lock(&self.counts);
        let count = counts.entry(symbol).or_default();
        *count += 1;
        let mut failures = self.failures.iter().filter(|failure| failure.symbol == symbol);
        failures.find(|failure| (failure.first..=failure.last).contains(count)).map(|failure| failure.code)
    }
}

/// Locks also what a panicking test has left locked.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The dynamic library of a dependency, which cargo puts beside the test executables, in
/// `target/*/deps`.
///
/// # Errors
///
/// If there is none.
pub fn library(name: &str) -> io::Result<PathBuf> {
    let executable = env::current_exe()?;
    let folder = executable.parent().unwrap_or(Path::new("/"));
    let places = [folder.join(name), folder.join("deps").join(name)];
    let found = places.iter().find(|place| place.exists());
    found.cloned().ok_or_else(|| {
        io::Error::new(io::ErrorKind::NotFound, format!("no {name} beside {}", executable.display()))
    })
}

/// A folder beside `library` with nothing but a link to it that is called `link`.
///
/// # Errors
///
/// If it can't be made.
pub fn folder_with_link(library: &Path, link: &str) -> io::Result<PathBuf> {
    let folder = library.with_extension("folder");
    fs::create_dir_all(&folder)?;
    let link = folder.join(link);
    match std::os::unix::fs::symlink(library, &link) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        result => result?,
    }
    // A link from a build folder that was moved leads to nowhere.
    fs::metadata(&link)?;
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_call_that_is_named_fails_and_no_other() {
        let mut calls = Calls::default();
        calls.add_failure("ncclSend:3:2");
        calls.add_failure("ncclRecv:2+:6");
        let sends: Vec<_> = (0..4).map(|_| calls.count("ncclSend")).collect();
        assert_eq!(sends, [None, None, Some(2), None]);
        let receives: Vec<_> = (0..4).map(|_| calls.count("ncclRecv")).collect();
        assert_eq!(receives, [None, Some(6), Some(6), Some(6)]);
    }

    #[test]
    fn switches_are_names_with_or_without_values() {
        let all: Vec<_> = switches(" silent, version=21903,,fail=a:1:2").collect();
        assert_eq!(all, [("silent", ""), ("version", "21903"), ("fail", "a:1:2")]);
        assert!(std::panic::catch_unwind(|| number::<u64>("version", "x")).is_err());
        assert!(std::panic::catch_unwind(|| Calls::default().add_failure("ncclSend")).is_err());
    }
}
