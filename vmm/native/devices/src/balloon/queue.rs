//! What is in the buffers: lists of page numbers (virtio 1.2, 5.5.6) and statistics (5.5.6.3).

use strato_virtio::{Chain, ChainError, RunningRing};

use super::control::STATS;

/// The unit of page numbers, whatever the guest's own pages are (VIRTIO_BALLOON_PFN_SHIFT).
pub(super) const PAGE: u64 = 4096;

/// Most page numbers of one chain; Linux puts 256 into one. What comes after them stays the guest's, who loses
/// nothing by it.
pub(super) const MAX_PAGES: usize = 4096;

const NUMBER_LEN: usize = 4;

/// A statistic: 16 bits of tag, 64 bits of value, packed.
const STAT_LEN: usize = 10;
/// Most of them in one chain; there are 16 tags.
const MAX_STATS: usize = 64;

/// Number of pages that a chain names.
pub(super) fn page_count(chain: &Chain) -> usize {
    chain.readable_len() as usize / NUMBER_LEN
}

/// Copies the page numbers of a chain, at most [`MAX_PAGES`].
pub(super) fn read_pages(
    ring: &RunningRing<'_>,
    chain: &Chain,
    raw: &mut Vec<u8>,
    pages: &mut Vec<u32>,
) -> Result<(), ChainError> {
    raw.resize(page_count(chain).min(MAX_PAGES) * NUMBER_LEN, 0);
    ring.read(chain, 0, raw)?;
    pages.clear();
    pages.extend(raw.as_chunks::<NUMBER_LEN>().0.iter().map(|number| u32::from_le_bytes(*number)));
    Ok(())
}

/// Page numbers in any order as ranges (address, length), each page once.
pub(super) fn ranges(pages: &mut [u32]) -> impl Iterator<Item = (u64, u64)> {
    pages.sort_unstable();
    pages.chunk_by(|page, next| next - page <= 1).filter_map(|run| {
        let (first, last) = (run.first()?, run.last()?);
        Some((u64::from(*first) * PAGE, u64::from(last - first + 1) * PAGE))
    })
}

/// Reads statistics by tag. Unknown tags mean nothing yet; of a tag that comes twice the last value counts.
pub(super) fn read_stats(ring: &RunningRing<'_>, chain: &Chain) -> Result<[Option<u64>; STATS], ChainError> {
    let count = (chain.readable_len() as usize / STAT_LEN).min(MAX_STATS);
    let mut raw = vec![0; count * STAT_LEN];
    ring.read(chain, 0, &mut raw)?;
    let mut stats = [None; STATS];
    for [a, b, value @ ..] in raw.as_chunks::<STAT_LEN>().0 {
        if let Some(stat) = stats.get_mut(usize::from(u16::from_le_bytes([*a, *b]))) {
            *stat = Some(u64::from_le_bytes(*value));
        }
    }
    Ok(stats)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_become_as_few_ranges_as_there_are() {
        let all = |pages: &[u32]| ranges(&mut pages.to_vec()).collect::<Vec<_>>();
        assert_eq!(all(&[]), []);
        assert_eq!(all(&[7]), [(7 * PAGE, PAGE)]);
        assert_eq!(all(&[5, 4, 6, 4, 9, 3]), [(3 * PAGE, 4 * PAGE), (9 * PAGE, PAGE)]);
        let last = u64::from(u32::MAX) * PAGE;
        assert_eq!(all(&[u32::MAX, 0, u32::MAX]), [(0, PAGE), (last, PAGE)]);
        assert_eq!(all(&[u32::MAX - 1, u32::MAX]), [(last - PAGE, 2 * PAGE)]);
    }
}
