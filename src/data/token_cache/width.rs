//! Bytes per id: as few as the largest possible one needs.

/// Width of an unsigned number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Width {
    /// All are 0, so nothing is stored.
    Zero,
    One,
    Two,
    Four,
}

impl Width {
    /// The narrowest that holds `max`.
    pub(super) fn for_max(max: u32) -> Self {
        match max {
            0 => Self::Zero,
            1..=0xFF => Self::One,
            0x100..=0xFFFF => Self::Two,
            _ => Self::Four,
        }
    }

    /// The width of this many bytes.
    pub(super) fn of_bytes(bytes: u8) -> Option<Self> {
        [Self::Zero, Self::One, Self::Two, Self::Four]
            .into_iter()
            .find(|width| width.bytes() == usize::from(bytes))
    }

    pub(super) fn bytes(self) -> usize {
        match self {
            Self::Zero => 0,
            Self::One => 1,
            Self::Two => 2,
            Self::Four => 4,
        }
    }

    /// Appends `values`, none of which is wider.
    pub(super) fn put(self, values: &[u32], out: &mut Vec<u8>) {
        let bytes = self.bytes();
        for value in values {
            debug_assert!(bytes == 4 || value >> (8 * bytes) == 0);
            out.extend_from_slice(&value.to_le_bytes()[..bytes]);
        }
    }

    /// Appends the `count` values that `bytes` hold.
    pub(super) fn get(self, bytes: &[u8], count: usize, out: &mut Vec<u32>) {
        match self {
            Self::Zero => out.resize(out.len() + count, 0),
            Self::One => out.extend(bytes.iter().map(|&byte| u32::from(byte))),
            Self::Two => {
                let (pairs, _) = bytes.as_chunks();
                out.extend(
                    pairs
                        .iter()
                        .map(|&pair| u32::from(u16::from_le_bytes(pair))),
                );
            }
            Self::Four => {
                let (words, _) = bytes.as_chunks();
                out.extend(words.iter().map(|&word| u32::from_le_bytes(word)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_narrowest_width_gives_back_what_was_put() {
        for (max, bytes) in [
            (0, 0),
            (1, 1),
            (0xFF, 1),
            (0x100, 2),
            (0xFFFF, 2),
            (0x1_0000, 4),
            (u32::MAX, 4),
        ] {
            let width = Width::for_max(max);
            assert_eq!(width.bytes(), bytes);
            assert_eq!(Width::of_bytes(width.bytes() as u8), Some(width));
            for values in [vec![], vec![max], vec![0, max, max / 2]] {
                let (mut out, mut back) = (Vec::new(), Vec::new());
                width.put(&values, &mut out);
                assert_eq!(out.len(), bytes * values.len());
                width.get(&out, values.len(), &mut back);
                assert_eq!(back, values);
            }
        }
        assert_eq!(Width::of_bytes(3), None);
    }
}
