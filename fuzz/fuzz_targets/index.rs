//! A hostile `index.redb`: whatever is in the file, the answer is an answer or an error.
//!
//! redb panics on some files, and the index turns that into an error. So panics are no findings here
//! unless they get out. `VIRTKEEP_FUZZ_PANICS=1` shows them.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use virtkeep_fuzz::index_file::{self, Alone, IDENTITY, IndexTampering, MemoryFiles};
use virtkeep_fuzz::memory;
use virtkeep_repo::index::Index;
use virtkeep_repo::{Error, PointId, Result};

/// The cache of redb, and as much again for what it keeps beside it.
const MEMORY_BYTES: usize = 192 << 20;

fuzz_target!(
    init: {
        index_file::prepare();
        let show = std::env::var_os("VIRTKEEP_FUZZ_PANICS").is_some();
        let report = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if show {
                report(info);
            }
        }));
    },
    |input: (u8, IndexTampering)| {
        let (uses, tampering) = input;
        let file = tampering.apply();
        memory::within(MEMORY_BYTES, || use_it(file, uses));
    }
);

/// Does some of what can be done with an index, as the bits of `uses` say.
fn use_it(file: Vec<u8>, uses: u8) {
    let files = Arc::new(MemoryFiles::holding(file));
    let Some(index) = sound(Index::open(files, Arc::new(Alone), IDENTITY)) else {
        return;
    };
    let ids: Vec<_> = (0..1010).step_by(3).map(index_file::id).collect();
    let point = PointId::from_bytes([9; 10]);
    let on = |bit: u8| uses & 1 << bit != 0;
    if on(0) {
        sound(index.locate(&ids));
    }
    if on(1) {
        sound(index.known(&ids));
        sound(index.wanted(usize::MAX));
    }
    if on(2) {
        sound(index.points());
        sound(index.packs());
    }
    if on(3) {
        sound(index.stats());
    }
    if on(4) {
        sound(index.put_point(point, b"new"));
    }
    if on(5) {
        sound(index.add_packs(&[index_file::pack(4, 5000..5100)]));
        sound(index.known(&ids));
    }
    if on(6) {
        sound(index.remove_point(PointId::from_bytes([3; 10])));
    }
    if on(7) {
        rebuild(&index);
    }
}

/// Whatever the old index holds, a new one takes its place.
fn rebuild(index: &Index) {
    let rebuild = index.start_rebuild().expect("it begins with an empty file");
    rebuild
        .add_packs(&[index_file::pack(1, 0..10)])
        .expect("the new index is sound");
    rebuild.publish(|_| Ok(())).expect("it is published");
    assert_eq!(
        index.known(&[index_file::id(3)]).expect("it is sound"),
        [true]
    );
}

/// The only error there may be is that the index is damaged.
fn sound<T>(result: Result<T>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(Error::Index { .. } | Error::Poisoned) => None,
        // A damaged allocator asks for more file than there may be.
        Err(error) if error.is_no_space() => None,
        Err(error) => panic!("{error:?}"),
    }
}
