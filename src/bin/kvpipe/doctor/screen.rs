//! What people see: 80 columns, the name of a thing, its state in a word, and what there is to say.

use std::fmt;
use std::mem::take;

use super::report::{Interface, Limit, Report, Subject};
use crate::units::Size;

pub(super) struct Screen<'a>(pub(super) &'a Report);

/// The columns of names and of states.
const NAME: usize = 15;
const STATE: usize = 9;
/// What is left of 80 for texts.
const TEXT: usize = 80 - NAME - STATE;

impl fmt::Display for Screen<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { kvpipe, default_job, nccl, cuda, memory, interfaces, limits, .. } = self.0;
        writeln!(f, "kvpipe {kvpipe}")?;
        self.section(
            f,
            "default job",
            Subject::DefaultJob,
            &["two processes exchange tensors over tcp, on the cpu"],
        )?;
        let library = nccl.as_ref().map_or(Vec::new(), |nccl| vec![&nccl.version, &nccl.path]);
        self.section(f, "NCCL", Subject::Nccl, &library)?;
        let mut driver = Vec::new();
        if let Some(cuda) = cuda {
            driver.push(format!("a driver for CUDA {}", cuda.version));
            driver.extend(cuda.devices.iter().map(|gpu| {
                let free =
                    gpu.free_bytes.map_or(String::new(), |free| format!("{} free of ", Size(free as u64)));
                let total = Size(gpu.total_bytes as u64);
                format!("{} {}, {}, {free}{total}", gpu.device, gpu.name, gpu.compute_capability)
            }));
        }
        self.section(f, "CUDA", Subject::Cuda, &driver)?;
        if let Some(memory) = memory {
            let text = format!("{} available of {}", Size(memory.available_bytes), Size(memory.total_bytes));
            self.section(f, "host memory", Subject::Memory, &[text])?;
        }
        self.section(f, "interfaces", Subject::Interfaces, &addresses(interfaces))?;
        if let Some(limits) = limits {
            let files = amount(limits.file_descriptors, |count| count.to_string());
            self.section(f, "open files", Subject::FileDescriptors, &[files])?;
            let locked = amount(limits.locked_bytes, |bytes| Size(bytes).to_string());
            self.section(f, "locked memory", Subject::LockedMemory, &[locked])?;
        }
        let verdict = match default_job.ok {
            true => "the default job runs on this machine",
            false => "the default job does not run on this machine",
        };
        write!(f, "{verdict}")
    }
}

impl Screen<'_> {
    /// A thing, what there is of it, and what is wrong with it.
    fn section(
        &self,
        f: &mut fmt::Formatter<'_>,
        name: &str,
        subject: Subject,
        facts: &[impl AsRef<str>],
    ) -> fmt::Result {
        let problems: Vec<_> = self.0.problems.iter().filter(|problem| problem.subject == subject).collect();
        let mut state = problems.first().map_or("ok", |problem| problem.state);
        let mut name = name;
        for fact in facts {
            row(f, take(&mut name), take(&mut state), fact.as_ref())?;
        }
        for problem in problems {
            // Our errors list attempts like this.
            for attempt in problem.what.split("; ") {
                row(f, take(&mut name), take(&mut state), attempt)?;
            }
            row(f, "", "costs", problem.costs)?;
            row(f, "", "to do", problem.remedy)?;
        }
        Ok(())
    }
}

fn row(f: &mut fmt::Formatter<'_>, name: &str, state: &str, text: &str) -> fmt::Result {
    let (mut name, mut state) = (name, state);
    for line in wrapped(text, TEXT) {
        writeln!(f, "{:<NAME$}{:<STATE$}{line}", take(&mut name), take(&mut state))?;
    }
    Ok(())
}

/// A line for each address.
fn addresses(interfaces: &[Interface]) -> Vec<String> {
    let width =
        |text: fn(&Interface) -> String| interfaces.iter().map(|one| text(one).len()).max().unwrap_or(0);
    let (names, addresses) = (width(|one| one.name.clone()), width(|one| one.address.to_string()));
    let line = |one: &Interface| {
        let note = match one {
            Interface { nccl: true, .. } => "NCCL takes it",
            Interface { running: false, .. } => "down",
            _ => "",
        };
        // Padding counts for text only.
        let address = one.address.to_string();
        format!("{:<names$}  {address:<addresses$}  {note}", one.name).trim_end().to_owned()
    };
    interfaces.iter().map(line).collect()
}

/// What counts, and how far it may be raised.
fn amount(limit: Limit, text: impl Fn(u64) -> String) -> String {
    let text = |bound: Option<u64>| bound.map_or("no limit".into(), &text);
    match limit.soft == limit.hard {
        true => text(limit.soft),
        false => format!("{}; up to {} if asked for", text(limit.soft), text(limit.hard)),
    }
}

/// The words in lines of at most so many characters, but for words that are longer. Two spaces, as in a
/// table, stay.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_wrapped_and_never_cut() {
        assert_eq!(wrapped("ab cd ef", 5), ["ab cd", "ef"]);
        assert_eq!(wrapped("a abcdefgh b", 3), ["a", "abcdefgh", "b"]);
        assert_eq!(wrapped("a  b", 80), ["a  b"]);
        assert_eq!(wrapped("", 80), [""]);
    }

    #[test]
    fn a_limit_says_how_far_it_may_be_raised() {
        let amount = |soft, hard| amount(Limit { soft, hard }, |count| count.to_string());
        assert_eq!(amount(Some(1024), Some(4096)), "1024; up to 4096 if asked for");
        assert_eq!(amount(Some(1024), None), "1024; up to no limit if asked for");
        assert_eq!(amount(Some(20), Some(20)), "20");
        assert_eq!(amount(None, None), "no limit");
    }
}
