//! What is learned about a point after it was made.

use std::fs;

use virtkeep_repo::{Error, InitOptions, PointId, Remark};

use crate::disk::{MemoryDisk, backup, repository};

fn boot_test(passed: bool) -> Remark {
    Remark::BootTest {
        passed,
        seen: "the guest agent answers".to_owned(),
        seconds: 12.5,
    }
}

#[test]
fn notes_stay_with_their_point_and_leave_its_record_alone() {
    let (_dir, repo) = repository(&InitOptions::default());
    let mut disk = MemoryDisk::new(1 << 20);
    let first = backup(&repo, &disk.whole(), None);
    let second = backup(&repo, &disk.whole(), None);
    let record = repo.path().join("points").join(first.id.to_string());
    let before = fs::read(&record).unwrap();

    assert_eq!(repo.notes(first.id).unwrap(), []);
    repo.add_note(first.id, boot_test(false)).unwrap();
    repo.add_note(first.id, boot_test(true)).unwrap();
    let remarks: Vec<Remark> = repo
        .notes(first.id)
        .unwrap()
        .into_iter()
        .map(|n| n.remark)
        .collect();
    assert_eq!(remarks.len(), 2);
    assert!(remarks.contains(&boot_test(false)) && remarks.contains(&boot_test(true)));
    assert_eq!(repo.notes(second.id).unwrap(), []);
    assert!(fs::read(&record).unwrap() == before);

    let nobody = PointId::from_bytes([1; 10]);
    let refused = repo.add_note(nobody, boot_test(true)).unwrap_err();
    assert!(matches!(refused, Error::NoSuchPoint { .. }));
}

#[test]
fn a_note_that_cannot_be_read_or_is_of_a_later_kind_hides_no_other() {
    let (_dir, repo) = repository(&InitOptions::default());
    let point = backup(&repo, &MemoryDisk::new(1 << 20).whole(), None);
    repo.add_note(point.id, boot_test(true)).unwrap();
    let dir = repo
        .path()
        .join("points")
        .join(format!("{}.notes", point.id));
    fs::write(dir.join("0".repeat(32)), "{").unwrap();
    let later = r#"{"created":1,"kind":"of-a-later-version","more":[]}"#;
    fs::write(dir.join("1".repeat(32)), later).unwrap();
    let notes = repo.notes(point.id).unwrap();
    assert_eq!(notes.len(), 2, "{notes:?}");
    assert_eq!(notes[0].remark, Remark::Unknown);
    assert_eq!(notes[1].remark, boot_test(true));
}
