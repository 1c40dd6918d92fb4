//! What running commands tell others about what they rely on.

use virtkeep_repo::lease::{LeaseContent, LeaseStore, Roots};
use virtkeep_repo::{Cancel, Env, FileRole, InitOptions, NoProgress, Repository};

use crate::disk::{MemoryDisk, backup, draft, repository};

fn leases(repo: &Repository) -> Vec<LeaseContent> {
    let store = LeaseStore::new(&repo.path().join("leases"), Env::system());
    let seen = store.list().unwrap();
    seen.into_iter()
        .map(|lease| lease.content.unwrap())
        .collect()
}

#[test]
fn a_backup_names_the_disks_of_its_parents_in_its_lease() {
    let (_dir, repo) = repository(&InitOptions::default());
    let mut disk = MemoryDisk::new(1 << 20);
    disk.write(0, &[1; 100_000]);
    let parent = backup(&repo, &disk.whole(), None);
    let running = repo.begin_backup(&[parent.id], "test").unwrap();
    let seen = leases(&repo);
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].roots, Roots::of([&parent]));
    assert_eq!(seen[0].roots.disks, [parent.disks[0].root]);
    drop(running);
    assert_eq!(leases(&repo), []);
}

#[test]
fn who_holds_a_point_names_its_disks_and_files() {
    let (_dir, repo) = repository(&InitOptions::default());
    let mut disk = MemoryDisk::new(1 << 20);
    disk.write(0, &[1; 100_000]);
    let source = disk.whole();
    let running = repo.begin_backup(&[], "test").unwrap();
    let stored = running
        .store_disk(&source, None, &NoProgress, &Cancel::new())
        .unwrap();
    let file = running
        .store_file(FileRole::Log, "log", &mut &b"what happened"[..])
        .unwrap();
    let mut draft = draft(&source, stored);
    draft.files.push(file);
    let point = running.commit(draft).unwrap();

    let held = repo.hold(&point, &Cancel::new()).unwrap();
    let seen = leases(&repo);
    assert_eq!(seen[0].roots, Roots::of([&point]));
    assert_eq!(seen[0].roots.files, point.files[0].pieces);
    drop(held);
    assert_eq!(leases(&repo), []);
    let content = repo.read_file(&point, &point.files[0]).unwrap();
    assert_eq!(content, b"what happened");
}
