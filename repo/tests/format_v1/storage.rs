//! One suite for every storage, and what only local files have to prove.

use std::fs;
use std::sync::Arc;
use std::thread;

use tempfile::TempDir;
use virtkeep_repo::storage::{Folder, LocalStorage, MemoryStorage, ObjectName, Storage};
use virtkeep_repo::{Error, NoteId, PackId, PointId};

fn pack(byte: u8) -> ObjectName {
    ObjectName::Pack(PackId::from_bytes([byte; 16]))
}

fn point(byte: u8) -> PointId {
    PointId::from_bytes([byte; 10])
}

fn note(point: PointId, byte: u8) -> ObjectName {
    let note = NoteId::from_bytes([byte; 16]);
    ObjectName::Note { point, note }
}

fn local() -> (TempDir, LocalStorage) {
    let directory = tempfile::tempdir().unwrap();
    let storage = LocalStorage::new(directory.path());
    (directory, storage)
}

/// Runs a check against every storage there is.
fn everywhere(check: impl Fn(Arc<dyn Storage>)) {
    check(Arc::new(MemoryStorage::new()));
    let (_directory, storage) = local();
    check(Arc::new(storage));
}

#[test]
fn an_object_reads_as_it_was_written() {
    everywhere(|storage| {
        let mut writer = storage.create(&pack(1)).unwrap();
        writer.append(b"hello ").unwrap();
        writer.append(b"").unwrap();
        writer.append(b"world").unwrap();
        writer.finish().unwrap();
        assert_eq!(storage.len(&pack(1)).unwrap(), Some(11));
        let mut middle = [0; 5];
        storage.read_at(&pack(1), 3, &mut middle).unwrap();
        assert_eq!(&middle, b"lo wo");
        assert_eq!(storage.read_whole(&pack(1), 11).unwrap(), b"hello world");
        storage.read_at(&pack(1), 11, &mut []).unwrap();
    });
}

#[test]
fn what_can_be_read_without_waiting_is_what_reading_gives() {
    everywhere(|storage| {
        storage.put(&pack(1), b"hello world").unwrap();
        let mut middle = [0; 5];
        storage.read_at(&pack(1), 3, &mut middle).unwrap();
        middle.fill(0);
        // Some file systems cannot tell whether they would wait.
        if storage.read_cached_at(&pack(1), 3, &mut middle) {
            assert_eq!(&middle, b"lo wo");
        }
        assert!(!storage.read_cached_at(&pack(1), 7, &mut middle));
        assert!(!storage.read_cached_at(&pack(2), 0, &mut middle));
    });
}

#[test]
fn an_object_is_not_there_before_it_is_finished() {
    everywhere(|storage| {
        let mut writer = storage.create(&pack(1)).unwrap();
        writer.append(b"half").unwrap();
        assert_eq!(storage.len(&pack(1)).unwrap(), None);
        assert_eq!(storage.list(Folder::Packs).unwrap(), []);
        assert!(matches!(
            storage.read_at(&pack(1), 0, &mut [0]),
            Err(Error::Missing { .. })
        ));
        drop(writer);
        assert_eq!(storage.len(&pack(1)).unwrap(), None);
        storage.put(&pack(1), b"whole").unwrap();
    });
}

#[test]
fn no_object_is_ever_replaced() {
    everywhere(|storage| {
        storage.put(&pack(1), b"first").unwrap();
        assert!(matches!(
            storage.put(&pack(1), b"second"),
            Err(Error::AlreadyExists { .. })
        ));
        assert_eq!(storage.read_whole(&pack(1), 100).unwrap(), b"first");
    });
}

#[test]
fn reading_past_the_end_is_damage_and_reading_nothing_is_a_loss() {
    everywhere(|storage| {
        storage.put(&pack(1), b"short").unwrap();
        for offset in [1, 5, 6, 1 << 40] {
            let read = storage.read_at(&pack(1), offset, &mut [0; 5]);
            assert!(
                matches!(read, Err(Error::Corrupt { .. })),
                "at {offset}: {read:?}"
            );
        }
        assert!(matches!(
            storage.read_whole(&pack(1), 4),
            Err(Error::Corrupt { .. })
        ));
        assert!(matches!(
            storage.read_whole(&pack(2), 4),
            Err(Error::Missing { .. })
        ));
        assert!(matches!(
            storage.read_at(&pack(2), 0, &mut [0]),
            Err(Error::Missing { .. })
        ));
    });
}

#[test]
fn listing_shows_each_folder_its_own() {
    everywhere(|storage| {
        assert_eq!(storage.list(Folder::Packs).unwrap(), []);
        assert_eq!(storage.list(Folder::Forgotten).unwrap(), []);
        assert_eq!(storage.list(Folder::Notes(point(1))).unwrap(), []);
        let packs = [pack(0x01), pack(0xab), pack(0xff)];
        let points = [ObjectName::Point(point(1)), ObjectName::Point(point(2))];
        let forgotten = [point(2), point(3)].map(ObjectName::Forgotten);
        let notes = [note(point(1), 7), note(point(1), 8)];
        let others = [note(point(2), 7), ObjectName::Config];
        for name in packs
            .iter()
            .chain(&points)
            .chain(&forgotten)
            .chain(&notes)
            .chain(&others)
            .rev()
        {
            storage.put(name, b"x").unwrap();
        }
        assert_eq!(storage.list(Folder::Packs).unwrap(), packs);
        assert_eq!(storage.list(Folder::Points).unwrap(), points);
        assert_eq!(storage.list(Folder::Forgotten).unwrap(), forgotten);
        assert_eq!(storage.list(Folder::Notes(point(1))).unwrap(), notes);
    });
}

#[test]
fn deleting_twice_is_no_error() {
    everywhere(|storage| {
        storage.put(&pack(1), b"x").unwrap();
        storage.read_whole(&pack(1), 1).unwrap();
        assert!(storage.delete(&pack(1)).unwrap());
        assert!(!storage.delete(&pack(1)).unwrap());
        assert!(!storage.delete(&pack(2)).unwrap());
        assert!(matches!(
            storage.read_at(&pack(1), 0, &mut [0]),
            Err(Error::Missing { .. })
        ));
    });
}

#[test]
fn many_threads_write_and_read_at_once() {
    everywhere(|storage| {
        thread::scope(|scope| {
            for thread in 0..4_u8 {
                let storage = Arc::clone(&storage);
                scope.spawn(move || {
                    for number in 0..40_u8 {
                        let name = pack(thread * 40 + number);
                        storage.put(&name, &[number; 100]).unwrap();
                        assert_eq!(storage.read_whole(&name, 100).unwrap(), [number; 100]);
                    }
                });
            }
        });
        assert_eq!(storage.list(Folder::Packs).unwrap().len(), 160);
    });
}

#[test]
fn debris_is_removed_while_objects_in_the_making_are_left_alone() {
    everywhere(|storage| {
        let mut writer = storage.create(&pack(1)).unwrap();
        writer.append(b"in the making").unwrap();
        assert_eq!(storage.remove_debris().unwrap(), 0);
        writer.finish().unwrap();
        assert_eq!(storage.remove_debris().unwrap(), 0);
        assert_eq!(storage.list(Folder::Packs).unwrap(), [pack(1)]);
    });
}

#[test]
fn files_have_the_names_the_document_gives_them() {
    let (directory, storage) = local();
    let names = [
        (ObjectName::Config, "config.toml"),
        (pack(0xab), "packs/ab/abababababababababababababababab.pack"),
        (ObjectName::Point(point(0)), "points/p0000000000000000"),
        (
            ObjectName::Forgotten(point(0)),
            "forgotten/p0000000000000000",
        ),
        (
            note(point(0), 1),
            "points/p0000000000000000.notes/01010101010101010101010101010101",
        ),
    ];
    for (name, path) in names {
        storage.put(&name, b"x").unwrap();
        assert_eq!(name.to_string(), path);
        assert_eq!(fs::read(directory.path().join(path)).unwrap(), b"x");
    }
}

#[test]
fn what_a_killed_writer_left_is_debris_and_in_nobodys_way() {
    let (directory, storage) = local();
    storage.put(&pack(2), b"sound").unwrap();
    let left = directory
        .path()
        .join("packs/02")
        .join(format!("{}.pack.tmp", "01".repeat(16)));
    fs::write(&left, b"half a pack").unwrap();
    assert_eq!(storage.list(Folder::Packs).unwrap(), [pack(2)]);
    assert_eq!(storage.remove_debris().unwrap(), 11);
    assert!(!left.exists());

    let settings = directory.path().join("config.toml.tmp");
    fs::write(&settings, b"half the settings").unwrap();
    storage.put(&ObjectName::Config, b"whole").unwrap();
    assert!(!settings.exists());
    assert_eq!(storage.list(Folder::Packs).unwrap(), [pack(2)]);
}

#[test]
fn two_writers_of_one_name_do_not_share_a_file() {
    let (_directory, storage) = local();
    let mut first = storage.create(&pack(1)).unwrap();
    first.append(b"first").unwrap();
    assert!(matches!(storage.create(&pack(1)), Err(Error::Busy { .. })));
    first.finish().unwrap();
    assert_eq!(storage.read_whole(&pack(1), 5).unwrap(), b"first");
}

#[test]
fn foreign_and_misplaced_files_are_not_listed() {
    let (directory, storage) = local();
    storage.put(&pack(1), b"x").unwrap();
    let shard = directory.path().join("packs/01");
    fs::write(shard.join("README"), b"").unwrap();
    fs::write(shard.join(format!("{}.pack", "02".repeat(16))), b"").unwrap();
    fs::write(shard.join(format!("{}.PACK", "01".repeat(16))), b"").unwrap();
    fs::write(directory.path().join("packs/stray.pack"), b"").unwrap();
    assert_eq!(storage.list(Folder::Packs).unwrap(), [pack(1)]);
}

#[test]
fn more_objects_than_may_be_open_are_still_readable() {
    let (_directory, storage) = local();
    let names: Vec<_> = (0..300_u16)
        .map(|number| {
            let mut bytes = [0; 16];
            bytes[14..].copy_from_slice(&number.to_le_bytes());
            ObjectName::Pack(PackId::from_bytes(bytes))
        })
        .collect();
    for (number, name) in names.iter().enumerate() {
        storage.put(name, &number.to_le_bytes()).unwrap();
    }
    for _ in 0..2 {
        for (number, name) in names.iter().enumerate() {
            assert_eq!(storage.read_whole(name, 8).unwrap(), number.to_le_bytes());
        }
    }
    let open = fs::read_dir("/proc/self/fd").unwrap().count();
    assert!(open < 300, "{open} files are open");
}

#[test]
fn an_object_that_appeared_meanwhile_is_not_replaced_either() {
    let (_directory, storage) = local();
    let mut writer = storage.create(&pack(1)).unwrap();
    writer.append(b"second").unwrap();
    fs::write(storage.path_of(&pack(1)), b"first").unwrap();
    let finished = writer.finish();
    assert!(matches!(finished, Err(Error::AlreadyExists { .. })));
    assert_eq!(storage.read_whole(&pack(1), 100).unwrap(), b"first");
    assert_eq!(storage.remove_debris().unwrap(), 0);
}

/// The files that this process keeps open below `directory`.
fn open_files(directory: &std::path::Path) -> Vec<std::path::PathBuf> {
    let descriptors = fs::read_dir("/proc/self/fd").unwrap();
    let targets = descriptors.filter_map(|entry| fs::read_link(entry.unwrap().path()).ok());
    targets
        .filter(|target| target.starts_with(directory))
        .collect()
}

/// How many of them are deleted.
fn deleted_open_files(directory: &std::path::Path) -> usize {
    let deleted = |target: &&std::path::PathBuf| target.to_string_lossy().ends_with(" (deleted)");
    open_files(directory).iter().filter(deleted).count()
}

#[test]
fn a_reader_holds_no_space_of_objects_that_others_deleted() {
    let (directory, storage) = local();
    let mut buffer = [0; 4];
    for number in 1..=3 {
        storage.put(&pack(number), b"content").unwrap();
    }
    for number in 1..=2 {
        storage.read_at(&pack(number), 0, &mut buffer).unwrap();
    }
    for number in 1..=2 {
        fs::remove_file(storage.path_of(&pack(number))).unwrap();
    }
    assert_eq!(deleted_open_files(directory.path()), 2);
    storage.read_at(&pack(1), 0, &mut buffer).unwrap();
    storage.read_at(&pack(3), 0, &mut buffer).unwrap();
    assert_eq!(deleted_open_files(directory.path()), 0);
    let gone = storage.read_at(&pack(1), 0, &mut buffer);
    assert!(matches!(gone, Err(Error::Missing { .. })), "{gone:?}");

    storage.put(&pack(4), b"content").unwrap();
    storage.read_at(&pack(4), 0, &mut buffer).unwrap();
    fs::remove_file(storage.path_of(&pack(3))).unwrap();
    storage.let_go();
    assert_eq!(deleted_open_files(directory.path()), 0);
    assert_eq!(open_files(directory.path()).len(), 1, "what is still there");
}
