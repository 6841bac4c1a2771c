//! Where token caches of a dataset lie: in `tokens/` beside it, so that they go when it goes. What is in them is
//! their reader's concern; it must not trust them, as nothing here looks inside.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use super::ArtifactError;
use super::durable::{entries, sync_dir};

/// Caches of one dataset that are kept, the newest: one per tokenizer, columns and length that were asked for.
/// Each is about as large as the dataset itself.
const KEPT: usize = 4;
const EXTENSION: &str = "tokens";
const TMP_PREFIX: &str = ".tmp-";

/// The token caches of one dataset.
#[derive(Clone, Debug)]
pub struct TokenCaches {
    dir: PathBuf,
}

impl TokenCaches {
    /// Those of the dataset whose uploaded file this is.
    pub fn beside(dataset_file: &Path) -> Self {
        Self {
            dir: dataset_file.with_file_name("tokens"),
        }
    }

    /// The cache called `name`, if there is one.
    pub fn open(&self, name: &str) -> Result<Option<File>, ArtifactError> {
        let path = self.path(name);
        match File::open(&path) {
            Ok(file) => Ok(Some(file)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(ArtifactError::io("open", &path, e)),
        }
    }

    /// Writes the cache called `name`, replacing one that is there, and answers it open for reading. It is there
    /// whole or not at all. Others may write the same one meanwhile: the last stays, and who reads one that
    /// was replaced or removed keeps it.
    pub fn publish<E: From<ArtifactError>>(
        &self,
        name: &str,
        content: impl FnOnce(&mut NewTokenCache) -> Result<(), E>,
    ) -> Result<File, E> {
        self.create_dir()?;
        let mut new = NewTokenCache::create(&self.dir)?;
        content(&mut new)?;
        let file = new.publish(&self.path(name))?;
        self.remove_old()?;
        Ok(file)
    }

    /// Only the last folder: that of a dataset which was deleted meanwhile does not come back.
    fn create_dir(&self) -> Result<(), ArtifactError> {
        match fs::create_dir(&self.dir) {
            Ok(()) => sync_dir(self.dir.parent().unwrap_or(&self.dir)),
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
            Err(e) => Err(ArtifactError::io("create", &self.dir, e)),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.{EXTENSION}"))
    }

    /// Removes what is more than [`KEPT`], the oldest first, and what writers that died left behind.
    fn remove_old(&self) -> Result<(), ArtifactError> {
        let mut caches = Vec::new();
        for path in entries(&self.dir)? {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with(TMP_PREFIX) {
                remove_if_abandoned(&path);
            } else if path
                .extension()
                .is_some_and(|extension| extension == EXTENSION)
            {
                let written = fs::metadata(&path).and_then(|file| file.modified());
                caches.push((written.unwrap_or(SystemTime::UNIX_EPOCH), path));
            }
        }
        caches.sort();
        let excess = caches.len().saturating_sub(KEPT);
        for (_, path) in &caches[..excess] {
            remove_file(path)?;
        }
        Ok(())
    }
}

/// A writer holds its file's lock, which the kernel releases when it dies.
fn remove_if_abandoned(path: &Path) {
    if let Ok(file) = File::open(path)
        && file.try_lock().is_ok()
    {
        // One that cannot be removed is tried again next time.
        let _ = fs::remove_file(path);
    }
}

fn remove_file(path: &Path) -> Result<(), ArtifactError> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(ArtifactError::io("remove", path, e))
        }
        _ => Ok(()),
    }
}

/// A cache being written. Dropping it unpublished removes it.
#[derive(Debug)]
pub struct NewTokenCache {
    path: PathBuf,
    file: Option<File>,
}

impl NewTokenCache {
    fn create(dir: &Path) -> Result<Self, ArtifactError> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        loop {
            let count = COUNT.fetch_add(1, Ordering::Relaxed);
            let name = format!("{TMP_PREFIX}{}-{count}", std::process::id());
            let path = dir.join(name);
            let created = OpenOptions::new()
                .read(true)
                .write(true)
                .create_new(true)
                .open(&path);
            let file = match created {
                Ok(file) => file,
                // Left by a process that had this number before.
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => continue,
                Err(e) => return Err(ArtifactError::io("create", &path, e)),
            };
            // On a file system without locks none is removed while it is written, nor afterwards.
            let _ = file.lock();
            let links = file.metadata().map(|file| file.nlink());
            if links.map_err(|e| ArtifactError::io("look at", &path, e))? > 0 {
                return Ok(Self {
                    path,
                    file: Some(file),
                });
            }
            // Taken for abandoned just before it was locked.
        }
    }

    /// Appends `bytes`.
    ///
    /// # Errors
    /// `DiskFull`, or what the file system says.
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), ArtifactError> {
        let written = match &mut self.file {
            Some(file) => file.write_all(bytes),
            None => Ok(()),
        };
        written.map_err(|e| ArtifactError::io("write", &self.path, e))
    }

    /// Makes the content durable, then the name.
    fn publish(mut self, place: &Path) -> Result<File, ArtifactError> {
        let error = |action| move |e| ArtifactError::io(action, place, e);
        let file = self.file.take();
        let file = file.ok_or_else(|| ArtifactError::invalid(place, "was published"))?;
        let renamed = file.sync_all().and_then(|()| fs::rename(&self.path, place));
        if let Err(e) = renamed {
            self.file = Some(file);
            return Err(error("write")(e));
        }
        sync_dir(place.parent().unwrap_or(place))?;
        let _ = file.unlock();
        Ok(file)
    }
}

impl Drop for NewTokenCache {
    fn drop(&mut self) {
        if self.file.is_some() {
            // Nothing to be done about a failure here; whoever writes next tries again.
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::time::Duration;

    use super::*;

    fn caches() -> (tempfile::TempDir, TokenCaches) {
        let dir = tempfile::tempdir().unwrap();
        let caches = TokenCaches::beside(&dir.path().join("data.csv"));
        (dir, caches)
    }

    fn publish(caches: &TokenCaches, name: &str, content: &str) -> File {
        caches
            .publish(name, |new| new.append(content.as_bytes()))
            .unwrap()
    }

    fn content(file: Option<File>) -> Option<String> {
        let mut text = String::new();
        file?.read_to_string(&mut text).unwrap();
        Some(text)
    }

    fn names(caches: &TokenCaches) -> Vec<String> {
        let name = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().into_owned();
        let mut names: Vec<String> = entries(&caches.dir).unwrap().iter().map(name).collect();
        names.sort();
        names
    }

    #[test]
    fn a_cache_is_there_when_it_is_whole() {
        let (_dir, caches) = caches();
        assert!(caches.open("a").unwrap().is_none());
        let failed: Result<File, ArtifactError> = caches.publish("a", |new| {
            new.append(b"half")?;
            assert!(caches.open("a").unwrap().is_none());
            Err(ArtifactError::invalid(Path::new("x"), "stopped"))
        });
        assert!(failed.is_err());
        assert_eq!(names(&caches), [""; 0], "nothing is left behind");

        let old = publish(&caches, "a", "first");
        publish(&caches, "a", "second");
        assert_eq!(content(caches.open("a").unwrap()).unwrap(), "second");
        assert_eq!(old.metadata().unwrap().len(), 5, "its reader keeps it");
    }

    #[test]
    fn the_newest_are_kept() {
        let (_dir, caches) = caches();
        for name in ["a", "b", "c", "d", "e", "f"] {
            let file = publish(&caches, name, name);
            // Files written within one tick of the clock have no order.
            let age = Duration::from_secs(u64::from(b'z' - name.as_bytes()[0]));
            let written = file.metadata().unwrap().modified().unwrap() - age;
            file.set_modified(written).unwrap();
        }
        // The sixth was the newest when the others were counted.
        assert_eq!(
            names(&caches),
            ["c.tokens", "d.tokens", "e.tokens", "f.tokens"]
        );
    }

    #[test]
    fn leftovers_go_and_what_is_being_written_stays() {
        let (_dir, caches) = caches();
        publish(&caches, "a", "a");
        fs::write(caches.dir.join(".tmp-1-0"), "left").unwrap();
        fs::write(caches.dir.join("note"), "not ours").unwrap();
        caches
            .publish("b", |new| {
                publish(&caches, "c", "c");
                new.append(b"b")
            })
            .unwrap();
        assert_eq!(names(&caches), ["a.tokens", "b.tokens", "c.tokens", "note"]);
    }

    #[test]
    fn a_deleted_dataset_does_not_come_back() {
        let (dir, caches) = caches();
        drop(dir);
        let error = caches.publish("a", |new| new.append(b"x")).unwrap_err();
        assert!(error.to_string().contains("tokens"), "{error}");
        assert!(!caches.dir.exists());
    }

    #[test]
    fn many_writers_of_one_cache_do_not_hurt_each_other() {
        let (_dir, caches) = caches();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        let file = publish(&caches, "same", "content");
                        assert_eq!(file.metadata().unwrap().len(), 7);
                        let found = content(caches.open("same").unwrap());
                        assert_eq!(found.unwrap(), "content");
                    }
                });
            }
        });
        assert_eq!(names(&caches), ["same.tokens"]);
    }
}
