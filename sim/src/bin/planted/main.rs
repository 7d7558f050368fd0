//! Plants known bugs in a copy of kvpipe, one after the other, and shows that each is found.
//!
//! `cargo run --release --manifest-path sim/Cargo.toml --bin planted [-- NAME...]` prints a table, of which
//! `sim/README.md` has a copy. The exit code is 1 if a bug was not found. The copy is built in
//! `sim/target/planted`; nothing outside of it is touched.

mod bugs;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Output};

use crate::bugs::{BUGS, Bug, Finder};

/// In how many seeds a bug must be found.
const SEEDS: &str = "1000";

fn main() -> ExitCode {
    let names: Vec<String> = std::env::args().skip(1).collect();
    if let Some(unknown) = names.iter().find(|name| BUGS.iter().all(|bug| bug.name != **name)) {
        eprintln!(
            "there is no bug {unknown}; there are {}",
            BUGS.iter().map(|bug| bug.name).collect::<Vec<_>>().join(", ")
        );
        return ExitCode::from(2);
    }
    let chosen = BUGS.iter().filter(|bug| names.is_empty() || names.iter().any(|name| name == bug.name));
    match plant(chosen) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(2)
        }
    }
}

/// True if all were found.
fn plant<'a>(bugs: impl Iterator<Item = &'a Bug>) -> io::Result<bool> {
    let garden = Garden::dig()?;
    println!("| bug | found by | seeds needed | and what it said |\n|---|---|---|---|");
    let mut all = true;
    for bug in bugs {
        let row = match garden.find(bug)? {
            Ok(Found { by, seeds, said }) => format!("| {} | {by} | {seeds} | {said} |", bug.what),
            Err(why) => {
                all = false;
                format!("| {} (`{}`) | **nobody** | | {why} |", bug.what, bug.name)
            }
        };
        println!("{row}");
    }
    Ok(all)
}

/// A copy of the source.
struct Garden {
    copy: PathBuf,
}

struct Found {
    by: String,
    seeds: String,
    said: String,
}

impl Garden {
    fn dig() -> io::Result<Self> {
        let sim = Path::new(env!("CARGO_MANIFEST_DIR"));
        let source =
            sim.parent().ok_or_else(|| io::Error::other("the simulation lies in kvpipe's folder"))?;
        let copy = sim.join("target/planted/kvpipe");
        if copy.exists() {
            fs::remove_dir_all(&copy)?;
        }
        copy_folder(source, &copy)?;
        // It lies within the simulation's workspace, and is none of its members.
        let manifest = copy.join("Cargo.toml");
        let alone = "\n[workspace]\nexclude = [\"sim\", \"fuzz\"]\n";
        fs::write(&manifest, fs::read_to_string(&manifest)? + alone)?;
        Ok(Self { copy })
    }

    fn find(&self, bug: &Bug) -> io::Result<Result<Found, String>> {
        let mut before = Vec::new();
        let mut missing = None;
        for (file, from, to) in bug.edits {
            let path = self.copy.join(file);
            let text = fs::read_to_string(&path)?;
            if text.matches(from).count() != 1 {
                missing = Some(format!("{file} does not have the text of the edit once"));
                break;
            }
            fs::write(&path, text.replace(from, to))?;
            before.push((path, text));
        }
        let found = match (missing, &bug.finder) {
            (Some(missing), _) => Ok(Err(missing)),
            (None, Finder::Seeds) => self.run_seeds(),
            (None, Finder::Loom(model)) => self.run_loom(model),
        };
        // The last first: a file may have been edited twice.
        for (path, text) in before.into_iter().rev() {
            fs::write(path, text)?;
        }
        found
    }

    fn run_seeds(&self) -> io::Result<Result<Found, String>> {
        let build = self
            .cargo(&["build", "--manifest-path", "sim/Cargo.toml", "--bin", "kvpipe-sim"], "build")
            .output()?;
        if !build.status.success() {
            return Ok(Err(first_error(&build)));
        }
        let runner = self.copy.with_file_name("build").join("debug/kvpipe-sim");
        let run = Command::new(runner).args(["--seeds", SEEDS, "--as-is"]).output()?;
        let printed = String::from_utf8_lossy(&run.stdout).into_owned();
        let Some((_, case)) = printed.split_once(" FAILED: --scenario ") else {
            return Ok(Err(format!("{SEEDS} seeds saw nothing wrong")));
        };
        let mut lines = case.lines();
        let (scenario, seed) = lines.next().and_then(|line| line.split_once(" --seed ")).unwrap_or_default();
        let said = lines.next().unwrap_or_default().trim().replace('|', "/");
        let seeds = seed.parse::<u64>().map_or_else(|_| "?".into(), |seed| (seed + 1).to_string());
        Ok(Ok(Found { by: format!("`{scenario}`"), seeds, said }))
    }

    fn run_loom(&self, model: &str) -> io::Result<Result<Found, String>> {
        let mut test = self.cargo(&["test", "--release", "--test", "loom", "--", model], "loom");
        test.env("RUSTFLAGS", "--cfg loom -C debug_assertions");
        let run = test.output()?;
        let printed = String::from_utf8_lossy(&run.stdout).into_owned();
        if run.status.success() || !printed.contains("panicked at") {
            return Ok(Err(first_error(&run)));
        }
        let said =
            printed.lines().skip_while(|line| !line.contains("panicked at")).nth(1).unwrap_or_default();
        let said = said.trim().replace('|', "/");
        Ok(Ok(Found { by: format!("loom, `{model}`"), seeds: "1 run".into(), said }))
    }

    fn cargo(&self, args: &[&str], target: &str) -> Command {
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.args(args).current_dir(&self.copy).env("CARGO_TARGET_DIR", self.copy.with_file_name(target));
        cargo
    }
}

fn first_error(output: &Output) -> String {
    let printed = String::from_utf8_lossy(&output.stderr).into_owned();
    let error = printed.lines().find(|line| line.starts_with("error"));
    error.unwrap_or("the test passed, or said nothing").to_owned()
}

/// Everything but what was built, and what is hidden.
fn copy_folder(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == "target" || name == "corpus" || name.to_string_lossy().starts_with('.') {
            continue;
        }
        let (from, to) = (entry.path(), to.join(&name));
        match entry.file_type()?.is_dir() {
            true => copy_folder(&from, &to)?,
            false => fs::write(to, fs::read(from)?)?,
        }
    }
    Ok(())
}
