//! How a command fails: a line for people, perhaps a hint, and an exit code.

use std::error::Error as _;
use std::fmt::{self, Write as _};
use std::io;
use std::process::ExitCode;

use kvpipe::Error;

use crate::output::to_stderr;

/// Why a command failed. [`report`](Self::report) shows it.
#[derive(Debug)]
pub(crate) struct Failure {
    kind: Kind,
    message: String,
    /// Further lines, such as what was not delivered.
    details: Vec<String>,
    hint: Option<String>,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    /// Exit code 2: arguments that can't be, on any machine and with any peer.
    Usage,
    /// Exit code 1: everything else.
    Failed,
}

impl Failure {
    /// Arguments that contradict each other or themselves.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        let hint = Some("kvpipe COMMAND --help shows what a command takes".into());
        Self { kind: Kind::Usage, message: message.into(), details: Vec::new(), hint }
    }

    /// Something that went wrong.
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self { kind: Kind::Failed, message: message.into(), details: Vec::new(), hint: None }
    }

    /// What the system refused, while doing what.
    pub(crate) fn io(doing: impl fmt::Display, error: &io::Error) -> Self {
        Self::new(format!("{doing}: {error}"))
    }

    /// One more line below the message.
    pub(crate) fn detail(mut self, line: impl Into<String>) -> Self {
        self.details.push(line.into());
        self
    }

    /// What the user can do about it.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Shows it on standard error and gives the exit code.
    pub(crate) fn report(self) -> ExitCode {
        to_stderr(&self);
        match self.kind {
            Kind::Usage => ExitCode::from(2),
            Kind::Failed => ExitCode::FAILURE,
        }
    }
}

/// The exit code of an outcome; a failure is shown.
pub(crate) fn report(outcome: Result<(), Failure>) -> ExitCode {
    outcome.map_or_else(Failure::report, |()| ExitCode::SUCCESS)
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "kvpipe: error: {}", self.message)?;
        for line in &self.details {
            writeln!(f, "  {line}")?;
        }
        self.hint.iter().try_for_each(|hint| writeln!(f, "  hint: {hint}"))
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let failure = match &error {
            Error::Unavailable { what, reason } => unavailable(what, reason),
            error => Self::new(chain(error)),
        };
        match hint_for(&error) {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    }
}

/// Several attempts stand on a line each.
fn unavailable(what: &str, reason: &str) -> Failure {
    let attempts: Vec<&str> = reason.split("; ").collect();
    match attempts[..] {
        [only] => Failure::new(format!("{what} is not available: {only}")),
        _ => {
            attempts.into_iter().fold(Failure::new(format!("{what} is not available")), |failure, attempt| {
                failure.detail(attempt)
            })
        }
    }
}

/// The error and its sources in one line. Most of our errors quote their source already.
fn chain(error: &Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let text = cause.to_string();
        if !line.contains(&text) {
            // Writing to a string can't fail.
            let _ = write!(line, ": {text}");
        }
        source = cause.source();
    }
    line
}

fn hint_for(error: &Error) -> Option<&'static str> {
    match error {
        Error::Io { source, .. } if source.kind() == io::ErrorKind::AddrInUse => {
            Some("another process listens there, perhaps an earlier run; choose another port")
        }
        Error::Io { source, .. } if source.kind() == io::ErrorKind::AddrNotAvailable => {
            Some("that is not an address of this machine")
        }
        Error::Timeout { .. } => Some(
            "all ranks need the same --store, --world-size, --group, --transport, --wire and secret, and \
             one end sends what the other receives; --timeout allows more time",
        ),
        Error::TooLarge { .. } => Some("--max-item-size sets the limit; both ends need the same"),
        Error::PeerIncompatible { .. } => Some("give both ranks the same setting"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_that_is_quoted_already_is_not_repeated() {
        let error = Error::io("binding 127.0.0.1:1", io::Error::other("no such luck"));
        assert_eq!(Failure::from(error).to_string(), "kvpipe: error: binding 127.0.0.1:1: no such luck\n");
    }

    #[test]
    fn what_was_tried_stands_on_a_line_each_if_it_was_more_than_one_thing() {
        let failure = |reason: &str| {
            Failure::from(Error::Unavailable { what: "NCCL".into(), reason: reason.into() }).to_string()
        };
        assert_eq!(failure("a: no"), "kvpipe: error: NCCL is not available: a: no\n");
        assert_eq!(failure("a: no; b: no"), "kvpipe: error: NCCL is not available\n  a: no\n  b: no\n");
    }

    #[test]
    fn details_and_the_hint_stand_below_the_message() {
        let failure = Failure::new("it broke").detail("3 of 4 arrived").hint("try again");
        assert_eq!(failure.to_string(), "kvpipe: error: it broke\n  3 of 4 arrived\n  hint: try again\n");
    }
}
