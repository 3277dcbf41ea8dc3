//! The end of a stored log, kept once more behind it, so that a page can show it without unpacking all of the log.
//!
//! Behind the compressed log stands one skippable frame (RFC 8878, 3.1.2), which every zstd decoder passes over:
//!
//! ```text
//! magic u32 | length u32 | the end, compressed | bytes of the whole log u64 | length of the compressed end u32 | marker
//! ```

/// One of the sixteen magic numbers that are free for such frames; others use the first.
const MAGIC: u32 = 0x184D_2A5E;
const MARKER: [u8; 8] = *b"hc-end-1";
const HEAD_BYTES: usize = 8;
const FOOT_BYTES: usize = 8 + 4 + MARKER.len();

/// How much of a log is kept behind it, in bytes.
pub const LOG_END_BYTES: usize = 128 << 10;

/// So many bytes at the end of an object hold all of it: what does not compress becomes a little larger.
pub const LOG_END_OBJECT_BYTES: usize = LOG_END_BYTES + (4 << 10);

/// What is to stand behind a log of `total` bytes whose compressed end is `compressed`.
pub fn frame(compressed: &[u8], total: u64) -> Vec<u8> {
    let length = u32::try_from(compressed.len()).unwrap_or(u32::MAX);
    let mut frame = Vec::with_capacity(HEAD_BYTES + compressed.len() + FOOT_BYTES);
    frame.extend_from_slice(&MAGIC.to_le_bytes());
    frame.extend_from_slice(&(length + FOOT_BYTES as u32).to_le_bytes());
    frame.extend_from_slice(compressed);
    frame.extend_from_slice(&total.to_le_bytes());
    frame.extend_from_slice(&length.to_le_bytes());
    frame.extend_from_slice(&MARKER);
    frame
}

/// The compressed end and the size of the whole log, from the last bytes of its object; `None` when no such frame is there.
pub fn parse(object_end: &[u8]) -> Option<(&[u8], u64)> {
    let (rest, marker) = object_end.split_last_chunk::<8>()?;
    let (rest, length) = rest.split_last_chunk::<4>()?;
    let (rest, total) = rest.split_last_chunk::<8>()?;
    let length = u32::from_le_bytes(*length) as usize;
    let start = rest.len().checked_sub(length)?;
    (*marker == MARKER).then(|| (&rest[start..], u64::from_le_bytes(*total)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read() {
        for end in [&b""[..], b"x", &vec![7; 70_000]] {
            let object = [b"a compressed log".as_slice(), &frame(end, 99)].concat();
            assert_eq!(parse(&object), Some((end, 99)));
            assert_eq!(parse(&object[16..]), Some((end, 99)));
        }
        assert!(frame(&vec![0; LOG_END_BYTES + 1_000], 0).len() <= LOG_END_OBJECT_BYTES);
    }

    #[test]
    fn anything_else_is_no_such_frame() {
        let whole = frame(b"the end", 7);
        assert_eq!(parse(&whole[HEAD_BYTES + 1..]), None, "cut off in front");
        assert_eq!(parse(&whole[..whole.len() - 1]), None, "cut off behind");
        for other in [&b""[..], b"hc-end-1", b"short", &[0xff; 64]] {
            assert_eq!(parse(other), None, "{other:?}");
        }
    }
}
