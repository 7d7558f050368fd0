//! Replacing a file whole or not at all.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::entropy::Entropy;
use crate::error::Error;

/// Puts what `write` writes in the place of the file at `path`, or leaves everything as it was.
///
/// Who holds the old file open or mapped keeps seeing the old contents. The new file has the old
/// one's permissions.
pub(super) fn replace(path: &Path, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    let path = destination(path)?;
    let mut temporary = Temporary::beside(&path)?;
    write(&mut temporary.file)?;
    if let Ok(old) = fs::metadata(&path) {
        temporary.file.set_permissions(old.permissions())?;
    }
    // Before the name exists, the contents must be on the disk: a crash must not leave half of them.
    temporary.file.sync_all()?;
    temporary.persist(&path)
}

/// The file itself, if `path` is a symbolic link to it: the link stays. Anything but a file, such as
/// a device, is not to be replaced.
fn destination(path: &Path) -> io::Result<PathBuf> {
    match fs::canonicalize(path) {
        Ok(target) if fs::metadata(&target)?.is_file() => Ok(target),
        Ok(_) => Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(path.to_path_buf()),
        Err(error) => Err(error),
    }
}

/// A file that is removed unless it gets its name.
struct Temporary {
    file: File,
    path: PathBuf,
    persisted: bool,
}

impl Temporary {
    /// A new file in the directory of `path`, because a rename can't leave its file system.
    fn beside(path: &Path) -> io::Result<Self> {
        let Some(name) = path.file_name() else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not the name of a file"));
        };
        let unique = Entropy::system().next_u64().map_err(|error| match error {
            Error::Io { source, .. } => io::Error::new(source.kind(), source),
            other => io::Error::other(other),
        })?;
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(name);
        hidden.push(format!(".{unique:016x}.tmp"));
        let path = path.with_file_name(hidden);
        let file = OpenOptions::new().write(true).create_new(true).open(&path)?;
        Ok(Self { file, path, persisted: false })
    }

    fn persist(mut self, destination: &Path) -> io::Result<()> {
        // The new name is durable once its directory is; only Unix lets us ask for that.
        #[cfg(unix)]
        let directory = File::open(directory_of(destination))?;
        fs::rename(&self.path, destination)?;
        self.persisted = true;
        #[cfg(unix)]
        directory.sync_all()?;
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.persisted {
            // There is nobody to tell, and the error that brought us here matters more.
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(unix)]
fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_failed_write_leaves_the_old_file_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        fs::write(&path, "old").unwrap();
        let error = replace(&path, |file| {
            file.write_all(b"half of the n")?;
            Err(io::ErrorKind::StorageFull.into())
        });
        assert_eq!(error.unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        assert_eq!(names(directory.path()), ["file"]);
    }

    #[test]
    fn a_failed_rename_leaves_nothing_behind() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let temporary = Temporary::beside(&path).unwrap();
        assert!(temporary.persist(&path.join("no such directory").join("file")).is_err());
        assert_eq!(names(directory.path()), [""; 0]);
    }

    #[test]
    fn a_finished_write_replaces_the_file_and_leaves_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        for contents in ["first", "second"] {
            replace(&path, |file| file.write_all(contents.as_bytes())).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), contents);
        }
        assert_eq!(names(directory.path()), ["file"]);
    }

    #[cfg(unix)]
    #[test]
    fn a_link_stays_and_its_file_is_replaced_with_its_permissions() {
        use std::os::unix::fs::{PermissionsExt, symlink};

        let directory = tempfile::tempdir().unwrap();
        let (path, link) = (directory.path().join("file"), directory.path().join("link"));
        fs::write(&path, "old").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        symlink(&path, &link).unwrap();
        replace(&link, |file| file.write_all(b"new")).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
    }

    #[test]
    fn what_is_not_a_file_is_not_replaced() {
        let directory = tempfile::tempdir().unwrap();
        for path in [directory.path(), Path::new("/"), Path::new("")] {
            assert!(replace(path, |_| Ok(())).is_err(), "{}", path.display());
        }
        assert!(directory.path().is_dir());
    }

    /// A socket stands for `/dev/null`, which root could replace as easily.
    #[cfg(unix)]
    #[test]
    fn a_special_file_is_not_replaced() {
        use std::os::unix::{fs::FileTypeExt, net::UnixListener};

        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let _listener = UnixListener::bind(&path).unwrap();
        assert_eq!(replace(&path, |_| Ok(())).unwrap_err().to_string(), "not a regular file");
        assert!(fs::metadata(&path).unwrap().file_type().is_socket());
    }
}
