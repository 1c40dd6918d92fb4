//! What the dirty bitmaps of an overlay do not tell.
//!
//! When an overlay shrinks and grows again, QEMU hides what its backing image holds behind the cut:
//! whole clusters are made zero clusters, and the rest of the cluster of the cut is filled with
//! zeroes beneath the bitmaps (`qcow2_co_truncate` with `BDRV_REQ_ZERO_WRITE`, QEMU 10.0). So the
//! bitmap calls data unchanged that is not: but only in one cluster, and that ends where zeroes
//! begin, or with the disk. In an overlay such clusters are read.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use virtkeep_repo::{ByteLen, DiskOffset, Extent, ExtentState};

/// The largest cluster of a qcow2 image.
const CLUSTER_MAX: u64 = 2 << 20;

/// The cluster size of a qcow2 image; the largest there is where its header cannot be read.
pub(crate) fn cluster_size(path: Option<&Path>) -> ByteLen {
    let bits = path.and_then(cluster_bits);
    let size = bits.and_then(|bits| 1u64.checked_shl(bits));
    ByteLen(size.map_or(CLUSTER_MAX, |size| size.min(CLUSTER_MAX)))
}

fn cluster_bits(path: &Path) -> Option<u32> {
    let mut header = [0; 24];
    File::open(path).ok()?.read_exact(&mut header).ok()?;
    let (magic, bits) = (header.first_chunk()?, header.last_chunk()?);
    (magic == b"QFI\xfb").then(|| u32::from_be_bytes(*bits))
}

/// The extents, with data instead of what is called unchanged in the cluster before zeroes. The last
/// extent may be followed by zeroes, too.
pub(crate) fn distrust_before_zeroes(extents: &[Extent], cluster: ByteLen) -> Vec<Extent> {
    let before = |offset: DiskOffset| offset.0.saturating_sub(cluster.0);
    let mut doubtful = extents.last().map_or(0, |last| before(last.end()));
    let mut reversed: Vec<Extent> = Vec::with_capacity(extents.len());
    for &extent in extents.iter().rev() {
        match extent.state {
            ExtentState::Zero => doubtful = before(extent.start),
            ExtentState::Unchanged if extent.end().0 > doubtful => {
                let cut = doubtful.max(extent.start.0);
                let part = |from: u64, to: u64, state| Extent {
                    start: DiskOffset(from),
                    len: ByteLen(to - from),
                    state,
                };
                reversed.push(part(cut, extent.end().0, ExtentState::Data));
                if cut > extent.start.0 {
                    reversed.push(part(extent.start.0, cut, ExtentState::Unchanged));
                }
                continue;
            }
            ExtentState::Unchanged | ExtentState::Data => {}
        }
        reversed.push(extent);
    }
    reversed.reverse();
    reversed
}

#[cfg(test)]
mod tests {
    use super::*;
    use ExtentState::{Data, Unchanged, Zero};

    fn extents(list: &[(u64, ExtentState)]) -> Vec<Extent> {
        let mut start = DiskOffset::ZERO;
        let extent = |&(len, state): &(u64, ExtentState)| {
            let len = ByteLen(len);
            let extent = Extent { start, len, state };
            start = extent.end();
            extent
        };
        list.iter().map(extent).collect()
    }

    #[test]
    fn the_cluster_before_zeroes_and_the_last_one_are_data() {
        let told = [
            (100, Unchanged),
            (4, Zero),
            (2, Unchanged),
            (3, Zero),
            (30, Unchanged),
        ];
        let read = [
            (90, Unchanged),
            (10, Data),
            (4, Zero),
            (2, Data),
            (3, Zero),
            (20, Unchanged),
            (10, Data),
        ];
        let distrusted = distrust_before_zeroes(&extents(&told), ByteLen(10));
        assert_eq!(distrusted, extents(&read));
    }

    #[test]
    fn dirty_data_in_the_cluster_does_not_hide_what_is_before_it() {
        let told = [(20, Unchanged), (3, Data), (1, Unchanged), (50, Zero)];
        let read = [(14, Unchanged), (6, Data), (3, Data), (1, Data), (50, Zero)];
        let distrusted = distrust_before_zeroes(&extents(&told), ByteLen(10));
        assert_eq!(distrusted, extents(&read));
    }

    #[test]
    fn the_cluster_size_is_in_the_header_of_the_image() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(cluster_size(Some(file.path())), ByteLen(CLUSTER_MAX));
        let mut header = b"QFI\xfb\0\0\0\x03".to_vec();
        header.extend([0; 12]);
        header.extend(16u32.to_be_bytes());
        std::fs::write(file.path(), header).unwrap();
        assert_eq!(cluster_size(Some(file.path())), ByteLen(64 << 10));
        assert_eq!(cluster_size(None), ByteLen(CLUSTER_MAX));
    }
}
