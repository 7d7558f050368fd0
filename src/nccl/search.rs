//! Where an NCCL library may be.

use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

/// The variables that name a library, in the order of their weight. The second is vLLM's.
const NAMING: [&str; 2] = ["KVPIPE_NCCL_SO_PATH", "VLLM_NCCL_SO_PATH"];

/// The names by which the system's search knows it: NVIDIA's, its development link, and that of AMD's
/// RCCL, which has the same functions.
const NAMES: [&str; 3] = ["libnccl.so.2", "libnccl.so", "librccl.so.1"];

/// The variables by which an active Python environment is known: venv's, conda's.
const ENVIRONMENTS: [&str; 2] = ["VIRTUAL_ENV", "CONDA_PREFIX"];

/// Where NVIDIA's wheels put it.
const IN_SITE_PACKAGES: &str = "site-packages/nvidia/nccl/lib/libnccl.so.2";

/// A library to try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Candidate {
    /// A path, or a bare name for the system's search.
    pub(super) file: PathBuf,
    /// The variable that led to it.
    variable: Option<&'static str>,
}

/// As errors name it.
impl fmt::Display for Candidate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        self.variable.map_or(Ok(()), |variable| write!(f, " (from {variable})"))
    }
}

/// What to try, one after the other; or, in its place, why there is nothing to try there.
///
/// A library that somebody names is the only one: another one in its place would be a surprise.
pub(super) fn candidates(
    explicit: Option<&Path>,
    variable: impl Fn(&str) -> Option<OsString>,
) -> Vec<Result<Candidate, String>> {
    let value = |name| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(file) = explicit {
        return vec![Ok(Candidate { file: file.into(), variable: None })];
    }
    for name in NAMING {
        if let Some(file) = value(name) {
            return vec![Ok(Candidate { file, variable: Some(name) })];
        }
    }
    let mut all: Vec<_> =
        NAMES.iter().map(|name| Ok(Candidate { file: name.into(), variable: None })).collect();
    let active: Vec<_> =
        ENVIRONMENTS.into_iter().filter_map(|name| value(name).map(|root| (name, root))).collect();
    if active.is_empty() {
        all.push(Err(format!("no Python environment is active ({})", ENVIRONMENTS.join(", "))));
    }
    for (name, root) in active {
        let found = in_environment(&root);
        if found.is_empty() {
            all.push(Err(format!("{} (from {name}): no {IN_SITE_PACKAGES} in its lib", root.display())));
        }
        all.extend(found.into_iter().map(|file| Ok(Candidate { file, variable: Some(name) })));
    }
    all
}

/// The libraries of an environment: one for each version of Python that it has, in the order of their
/// names. A folder that can't be read has none.
fn in_environment(root: &Path) -> Vec<PathBuf> {
    let lib = root.join("lib");
    let Ok(entries) = fs::read_dir(&lib) else { return Vec::new() };
    let mut names: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.file_name())).collect();
    names.retain(|name| name.as_encoded_bytes().starts_with(b"python"));
    names.sort();
    names.into_iter().map(|name| lib.join(name).join(IN_SITE_PACKAGES)).filter(|file| file.exists()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is tried with these variables, as errors name it.
    fn tried(explicit: Option<&str>, variables: &[(&str, &str)]) -> Vec<String> {
        let variable = |name: &str| {
            variables.iter().find(|(other, _)| *other == name).map(|(_, value)| OsString::from(value))
        };
        let all = candidates(explicit.map(Path::new), variable);
        all.into_iter().map(|one| one.map_or_else(|reason| reason, |one| one.to_string())).collect()
    }

    #[test]
    fn a_library_that_is_named_is_the_only_one_to_try() {
        let both = [("KVPIPE_NCCL_SO_PATH", "/k.so"), ("VLLM_NCCL_SO_PATH", "/v.so")];
        assert_eq!(tried(Some("/e.so"), &both), ["/e.so"]);
        assert_eq!(tried(None, &both), ["/k.so (from KVPIPE_NCCL_SO_PATH)"]);
        assert_eq!(tried(None, &both[1..]), ["/v.so (from VLLM_NCCL_SO_PATH)"]);
    }

    #[test]
    fn an_empty_variable_is_none() {
        let variables = [("KVPIPE_NCCL_SO_PATH", ""), ("VLLM_NCCL_SO_PATH", "/v.so")];
        assert_eq!(tried(None, &variables), ["/v.so (from VLLM_NCCL_SO_PATH)"]);
        let nothing = [("VLLM_NCCL_SO_PATH", ""), ("VIRTUAL_ENV", "")];
        assert_eq!(
            tried(None, &nothing),
            [
                "libnccl.so.2",
                "libnccl.so",
                "librccl.so.1",
                "no Python environment is active (VIRTUAL_ENV, CONDA_PREFIX)"
            ]
        );
    }

    #[test]
    fn python_environments_come_last_each_with_all_its_pythons() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().to_str().unwrap();
        for version in ["python3.9", "python3.11", "cmake"] {
            let file = folder.path().join("lib").join(version).join(IN_SITE_PACKAGES);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, "").unwrap();
        }
        fs::create_dir_all(folder.path().join("lib/python3.12")).unwrap();
        let all = tried(None, &[("CONDA_PREFIX", "/none"), ("VIRTUAL_ENV", root)]);
        assert_eq!(
            all[3..],
            [
                format!("{root}/lib/python3.11/{IN_SITE_PACKAGES} (from VIRTUAL_ENV)"),
                format!("{root}/lib/python3.9/{IN_SITE_PACKAGES} (from VIRTUAL_ENV)"),
                format!("/none (from CONDA_PREFIX): no {IN_SITE_PACKAGES} in its lib"),
            ]
        );
    }
}
