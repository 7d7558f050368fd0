//! Standard output for results, standard error for notes and progress.

use std::fmt;
use std::io::{self, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use crate::failure::Failure;

/// Where a command's results go: lines for people, or JSON lines for machines, never both.
#[derive(Clone, Debug)]
pub(crate) struct Output {
    json: bool,
    bar: ProgressBar,
}

impl Output {
    /// Without a progress bar.
    pub(crate) fn new(json: bool) -> Self {
        Self { json, bar: ProgressBar::hidden() }
    }

    /// With a bar on standard error, if that is a terminal; indicatif hides it elsewhere. The length
    /// is in bytes; `None` where it is not known.
    pub(crate) fn with_progress(mut self, bytes: Option<u64>) -> Self {
        let template = if bytes.is_some() { BAR } else { SPINNER };
        // The templates are ours and a test parses them; the default style would do as well.
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        self.bar = ProgressBar::with_draw_target(bytes, ProgressDrawTarget::stderr()).with_style(style);
        self
    }

    /// With what is being done on standard error, if that is a terminal.
    pub(crate) fn with_spinner(mut self) -> Self {
        let style = ProgressStyle::with_template(DOING).unwrap_or_else(|_| ProgressStyle::default_bar());
        self.bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr()).with_style(style);
        self
    }

    /// What is being done.
    pub(crate) fn doing(&self, what: &str) {
        if !self.bar.is_hidden() {
            self.bar.set_message(format!("measuring {what}"));
            self.bar.tick();
        }
    }

    /// How many bytes have been moved, and what is being done.
    pub(crate) fn progress(&self, bytes: u64, doing: impl fmt::Display) {
        if !self.bar.is_hidden() {
            self.bar.set_message(doing.to_string());
            self.bar.set_position(bytes);
        }
    }

    /// Takes the bar away.
    pub(crate) fn finish_progress(&self) {
        self.bar.finish_and_clear();
    }

    /// A result: `line` for people, or `value` for machines.
    ///
    /// # Errors
    /// If standard output can't be written to, such as a pipe whose reader has left.
    pub(crate) fn result(&self, line: impl fmt::Display, value: &impl Serialize) -> Result<(), Failure> {
        match self.json {
            true => self.json(value),
            false => self.line(line),
        }
    }

    /// A result for machines; nothing without `--json`.
    ///
    /// # Errors
    /// As [`result`](Self::result).
    pub(crate) fn json(&self, value: &impl Serialize) -> Result<(), Failure> {
        if !self.json {
            return Ok(());
        }
        let text = serde_json::to_string(value)
            .map_err(|error| Failure::new(format!("bug in kvpipe: a result is not JSON: {error}")))?;
        self.line(text)
    }

    /// A line for people; nothing with `--json`.
    ///
    /// # Errors
    /// As [`result`](Self::result).
    pub(crate) fn text(&self, line: impl fmt::Display) -> Result<(), Failure> {
        match self.json {
            true => Ok(()),
            false => self.line(line),
        }
    }

    /// A note on standard error, whatever standard output is for.
    pub(crate) fn note(&self, line: impl fmt::Display) {
        self.forward(format_args!("kvpipe: {line}"));
    }

    /// A line on standard error, as it is.
    pub(crate) fn forward(&self, line: impl fmt::Display) {
        self.bar.suspend(|| to_stderr(format_args!("{line}\n")));
    }

    fn line(&self, line: impl fmt::Display) -> Result<(), Failure> {
        let write = || {
            let mut stdout = io::stdout().lock();
            writeln!(stdout, "{line}")?;
            stdout.flush()
        };
        self.bar.suspend(write).map_err(|error| Failure::io("writing to standard output", &error))
    }
}

/// How often progress is looked at where nothing tells of it.
pub(crate) const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

/// Writes text to standard error in one piece, so that several processes' lines don't mix there.
pub(crate) fn to_stderr(text: impl fmt::Display) {
    // Where standard error is gone, there is nowhere left to say so.
    let _ = io::stderr().lock().write_all(text.to_string().as_bytes());
}

const BAR: &str = "{msg} {wide_bar} {bytes}/{total_bytes} {binary_bytes_per_sec}";
const DOING: &str = "{msg} ...";
const SPINNER: &str = "{spinner} {msg} {bytes} {binary_bytes_per_sec}";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_progress_templates_are_valid() {
        for template in [BAR, SPINNER, DOING] {
            assert!(ProgressStyle::with_template(template).is_ok(), "{template}");
        }
    }
}
