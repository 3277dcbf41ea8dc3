//! Folders that an older version wrote: their objects take the places where this one looks. Start at [`bring_up_to_date`].

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use super::S3Error;
use super::keys;

/// How objects lie below a bucket; raised when [`keys::path_of`] gives other places. The first one had no file that says so.
const LAYOUT: u32 = 2;

/// Moves what lies elsewhere, once. Whoever is interrupted begins again, for a key is read from either place.
pub(super) fn bring_up_to_date(root: &Path) -> Result<(), S3Error> {
    let path = root.join("layout");
    let failed = |doing, path: &Path| {
        let path = path.to_owned();
        move |cause| S3Error::Io { doing, path, cause }
    };
    let found = match fs::read_to_string(&path) {
        Ok(text) => text.trim().parse().unwrap_or(u32::MAX),
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => 1,
        Err(cause) => return Err(failed("read", &path)(cause)),
    };
    if found == LAYOUT {
        return Ok(());
    }
    if found > LAYOUT {
        return Err(S3Error::Layout { folder: root.to_owned() });
    }
    let buckets = root.join("buckets");
    for bucket in fs::read_dir(&buckets).map_err(failed("read", &buckets))? {
        let bucket = bucket.map_err(failed("read", &buckets))?.path();
        move_objects(&bucket).map_err(failed("move the objects of", &bucket))?;
    }
    let mut file = tempfile::NamedTempFile::new_in(root).map_err(failed("create", &path))?;
    let written = writeln!(file, "{LAYOUT}").and_then(|()| file.as_file().sync_all());
    written.map_err(failed("write", &path))?;
    file.persist(&path).map_err(|error| failed("write", &path)(error.error))?;
    Ok(())
}

fn move_objects(bucket: &Path) -> io::Result<()> {
    // Each with whether what is in it has been dealt with.
    let mut directories = vec![(PathBuf::new(), false)];
    while let Some((directory, is_done)) = directories.pop() {
        if is_done {
            // What it was emptied of is elsewhere; what still holds something stays.
            let _ = fs::remove_dir(bucket.join(&directory));
            continue;
        }
        if !directory.as_os_str().is_empty() {
            directories.push((directory.clone(), true));
        }
        for entry in fs::read_dir(bucket.join(&directory))? {
            let entry = entry?;
            let from = directory.join(entry.file_name());
            if entry.file_type()?.is_dir() {
                directories.push((from, false));
                continue;
            }
            let Some(to) = keys::key_of(&from).and_then(|key| keys::path_of(&key)).filter(|to| *to != from) else {
                continue;
            };
            let (from, to) = (bucket.join(from), bucket.join(to));
            fs::create_dir_all(to.parent().unwrap_or(bucket))?;
            fs::rename(&from, &to)?;
        }
    }
    // All at once, before the file that says so.
    rustix::fs::syncfs(fs::File::open(bucket)?)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_of_the_first_layout_are_found_again_however_often_the_move_was_interrupted() {
        let root = tempfile::tempdir().expect("directory");
        let bucket = root.path().join("buckets/cache");
        let long = format!("{}.c/log.o", "x".repeat(80));
        let old = ["ab.narinfo.o", "nar.d/ab.nar.o", "a.o", "a.d/b.o", long.as_str()];
        let put = |names: &[&str]| {
            for name in names {
                let path = bucket.join(name);
                fs::create_dir_all(path.parent().expect("a parent")).expect("created");
                fs::write(path, name).expect("written");
            }
        };
        put(&old);
        // One that was moved before the interruption.
        fs::create_dir_all(bucket.join("cd.s")).expect("created");
        fs::write(bucket.join("cd.s/cd.o"), "cd").expect("written");
        bring_up_to_date(root.path()).expect("moved");
        for name in old {
            let key = keys::key_of(Path::new(name)).expect("a key");
            let path = bucket.join(keys::path_of(&key).expect("a path"));
            assert_eq!(fs::read_to_string(&path).expect("moved"), name, "{}", path.display());
        }
        assert_eq!(fs::read_to_string(bucket.join("cd.s/cd.o")).expect("still there"), "cd");
        assert!(!bucket.join("nar.d").exists(), "what is empty is gone");
        // And once: this is no name of the second layout.
        put(&["nar.d/ab.nar.o"]);
        bring_up_to_date(root.path()).expect("nothing to do");
        assert!(bucket.join("nar.d/ab.nar.o").exists());
        fs::write(root.path().join("layout"), "3\n").expect("written");
        let error = bring_up_to_date(root.path()).expect_err("newer").to_string();
        assert!(error.contains("newer version"), "{error}");
    }
}
