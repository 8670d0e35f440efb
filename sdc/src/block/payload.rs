//! What a read brings: bytes in pieces as they arrived, and holes that need no bytes.

use std::sync::LazyLock;

use bytes::Bytes;

/// Zeros to show a hole by; a larger one is shown by several slices of them.
static ZEROS: LazyLock<Bytes> = LazyLock::new(|| Bytes::from(vec![0; 1 << 20]));

/// A part of a payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// These bytes.
    Data(Bytes),
    /// So many zeros, of which nothing is stored.
    Hole(usize),
}

impl Piece {
    /// Its length.
    pub const fn len(&self) -> usize {
        match self {
            Self::Data(bytes) => bytes.len(),
            Self::Hole(length) => *length,
        }
    }

    /// Whether it has no length.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The bytes of a read, in pieces as they arrived: a range over several chunks need not be copied together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Payload {
    /// The first piece: the whole of most reads, so that these need no vector.
    pub first: Piece,
    /// The pieces after it, in order.
    pub rest: Vec<Piece>,
}

impl Default for Payload {
    fn default() -> Self {
        Bytes::new().into()
    }
}

impl Payload {
    /// The pieces in order as one payload.
    pub fn of(pieces: impl IntoIterator<Item = Piece>) -> Self {
        let mut pieces = pieces.into_iter();
        let first = pieces.next().unwrap_or(Piece::Data(Bytes::new()));
        Self { first, rest: pieces.collect() }
    }

    /// The length of all pieces together.
    pub fn len(&self) -> usize {
        self.first.len() + self.rest.iter().map(Piece::len).sum::<usize>()
    }

    /// Whether there is no byte in it.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether a part of it is a hole.
    pub fn has_holes(&self) -> bool {
        std::iter::once(&self.first).chain(&self.rest).any(|piece| matches!(piece, Piece::Hole(_)))
    }

    /// The pieces in order.
    pub fn into_pieces(self) -> impl Iterator<Item = Piece> {
        std::iter::once(self.first).chain(self.rest)
    }

    /// The bytes in order, those of holes too.
    pub fn pieces(self) -> impl Iterator<Item = Bytes> {
        self.into_pieces().flat_map(|piece| {
            let (data, mut zeros) = match piece {
                Piece::Data(bytes) => (Some(bytes), 0),
                Piece::Hole(length) => (None, length),
            };
            let holes = std::iter::from_fn(move || {
                let length = zeros.min(ZEROS.len());
                zeros -= length;
                (length > 0).then(|| ZEROS.slice(..length))
            });
            data.into_iter().chain(holes)
        })
    }
}

impl From<Bytes> for Payload {
    fn from(first: Bytes) -> Self {
        Self { first: Piece::Data(first), rest: Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hole_is_zeros_of_its_length() {
        let payload = Payload::of([Piece::Hole(3 << 20), Piece::Data(Bytes::from_static(b"x")), Piece::Hole(2)]);
        assert_eq!((payload.len(), payload.has_holes()), ((3 << 20) + 3, true));
        let bytes: Vec<u8> = payload.pieces().flatten().collect();
        assert_eq!(bytes.len(), (3 << 20) + 3);
        assert!(bytes.iter().enumerate().all(|(at, byte)| (*byte == b'x') == (at == 3 << 20)));
    }
}
