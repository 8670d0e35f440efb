//! Fixed little-endian encoding for frames and journals: no schema, no copies, every length checked before it is used.
//!
//! A type's encoding is the concatenation of its fields' in the order written at the struct. Lists carry a `u32` count
//! and a bound; a count above the bound is an error before anything is allocated.

use crate::ids::{
    ChunkId, ChunkIndex, ClusterGeneration, ClusterId, DeviceId, DeviceUuid, Epoch, Generation, Incarnation, KeyId,
    LayerId, LogTime, Member, OperationId, PgId, PgIndex, PoolId, ProcessId, SdcId, SdsId, Sequence, SessionId,
    TokenId, Version, VolatilityId, VolumeEpoch, VolumeId, VtreeId,
};

/// The most elements any encoded list may claim; callers bound theirs further.
pub const MAX_LIST: usize = 1 << 20;

/// Why bytes are not what they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// Fewer bytes than the type needs.
    #[error("{missing} bytes missing at offset {at}")]
    Truncated {
        /// Where reading stopped.
        at: usize,
        /// How many more were needed.
        missing: usize,
    },
    /// Bytes left over after the last field.
    #[error("{extra} bytes too many")]
    TrailingBytes {
        /// How many.
        extra: usize,
    },
    /// A list or string longer than allowed.
    #[error("a list of {count} where at most {limit} are allowed")]
    TooLong {
        /// What it claimed.
        count: usize,
        /// The bound.
        limit: usize,
    },
    /// A number that names no variant.
    #[error("{value} is no {what}")]
    BadTag {
        /// The enum.
        what: &'static str,
        /// The number.
        value: u64,
    },
}

/// Reads values from the front of a byte slice.
#[derive(Debug)]
pub struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    /// Over all of `bytes`.
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// The next `n` bytes.
    ///
    /// # Errors
    /// [`CodecError::Truncated`].
    pub fn take(&mut self, n: usize) -> Result<&'a [u8], CodecError> {
        let left = self.bytes.len() - self.at;
        if n > left {
            return Err(CodecError::Truncated { at: self.at, missing: n - left });
        }
        let taken = &self.bytes[self.at..self.at + n];
        self.at += n;
        Ok(taken)
    }

    /// The next value.
    ///
    /// # Errors
    /// What the type's own decoding finds.
    pub fn get<T: Wire>(&mut self) -> Result<T, CodecError> {
        T::decode(self)
    }

    /// A list of at most `limit` elements.
    ///
    /// # Errors
    /// [`CodecError::TooLong`], or an element's own.
    pub fn list<T: Wire>(&mut self, limit: usize) -> Result<Vec<T>, CodecError> {
        let count = self.get::<u32>()? as usize;
        if count > limit {
            return Err(CodecError::TooLong { count, limit });
        }
        // A count within the limit may still lie about the bytes that follow: grow as they arrive.
        let mut items = Vec::with_capacity(count.min(self.remaining()));
        for _ in 0..count {
            items.push(T::decode(self)?);
        }
        Ok(items)
    }

    /// Bytes not read yet.
    pub const fn remaining(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// Ends reading.
    ///
    /// # Errors
    /// [`CodecError::TrailingBytes`] if something is left.
    pub const fn finish(self) -> Result<(), CodecError> {
        match self.remaining() {
            0 => Ok(()),
            extra => Err(CodecError::TrailingBytes { extra }),
        }
    }
}

/// A value with a fixed binary form.
pub trait Wire: Sized {
    /// Appends the encoding to `out`.
    fn encode(&self, out: &mut Vec<u8>);

    /// Reads one value.
    ///
    /// # Errors
    /// When the bytes are not such a value.
    fn decode(reader: &mut Reader<'_>) -> Result<Self, CodecError>;

    /// The encoding in a vector of its own.
    fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64);
        self.encode(&mut out);
        out
    }

    /// Decodes a value that must fill `bytes` exactly.
    ///
    /// # Errors
    /// When it does not.
    fn from_bytes(bytes: &[u8]) -> Result<Self, CodecError> {
        let mut reader = Reader::new(bytes);
        let value = Self::decode(&mut reader)?;
        reader.finish()?;
        Ok(value)
    }
}

macro_rules! wire_int {
    ($($int:ty),*) => {$(
        impl Wire for $int {
            fn encode(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }

            fn decode(reader: &mut Reader<'_>) -> Result<Self, CodecError> {
                let bytes = reader.take(size_of::<Self>())?;
                Ok(Self::from_le_bytes(bytes.try_into().expect("take returns as many bytes as asked")))
            }
        }
    )*};
}
wire_int!(u8, u16, u32, u64);

macro_rules! wire_newtype {
    ($($name:ident),*) => {$(
        impl Wire for $name {
            fn encode(&self, out: &mut Vec<u8>) {
                self.0.encode(out);
            }

            fn decode(reader: &mut Reader<'_>) -> Result<Self, CodecError> {
                Ok(Self(reader.get()?))
            }
        }
    )*};
}
wire_newtype!(
    ChunkIndex,
    ClusterGeneration,
    DeviceId,
    Epoch,
    Incarnation,
    KeyId,
    LayerId,
    LogTime,
    OperationId,
    PgIndex,
    PoolId,
    SdcId,
    SdsId,
    Sequence,
    SessionId,
    TokenId,
    VolatilityId,
    VolumeEpoch,
    VolumeId,
    VtreeId
);

macro_rules! wire_uuid {
    ($($name:ident),*) => {$(
        impl Wire for $name {
            fn encode(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(self.as_bytes());
            }

            fn decode(reader: &mut Reader<'_>) -> Result<Self, CodecError> {
                Ok(Self::from_bytes(reader.get()?))
            }
        }
    )*};
}
wire_uuid!(ClusterId, DeviceUuid, ProcessId);

impl<const N: usize> Wire for [u8; N] {
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self);
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, CodecError> {
        Ok(reader.take(N)?.try_into().expect("take returns as many bytes as asked"))
    }
}

impl Wire for bool {
    fn encode(&self, out: &mut Vec<u8>) {
        out.push(u8::from(*self));
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, CodecError> {
        match reader.get::<u8>()? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(CodecError::BadTag { what: "bool", value: other.into() }),
        }
    }
}

impl<T: Wire> Wire for Option<T> {
    fn encode(&self, out: &mut Vec<u8>) {
        self.is_some().encode(out);
        if let Some(value) = self {
            value.encode(out);
        }
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, CodecError> {
        Ok(if reader.get::<bool>()? { Some(reader.get()?) } else { None })
    }
}

impl<T: Wire> Wire for Vec<T> {
    fn encode(&self, out: &mut Vec<u8>) {
        u32::try_from(self.len()).expect("no list of ours nears 2^32 elements").encode(out);
        for item in self {
            item.encode(out);
        }
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, CodecError> {
        reader.list(MAX_LIST)
    }
}

impl Wire for String {
    fn encode(&self, out: &mut Vec<u8>) {
        u32::try_from(self.len()).expect("no string of ours nears 4 GiB").encode(out);
        out.extend_from_slice(self.as_bytes());
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, CodecError> {
        const LIMIT: usize = 4096;
        let count = reader.get::<u32>()? as usize;
        if count > LIMIT {
            return Err(CodecError::TooLong { count, limit: LIMIT });
        }
        Ok(Self::from_utf8_lossy(reader.take(count)?).into_owned())
    }
}

/// Implements [`Wire`] for a struct as the concatenation of its fields in the order given.
#[macro_export]
macro_rules! wire_fields {
    ($name:ident { $($field:ident),* $(,)? }) => {
        impl $crate::codec::Wire for $name {
            fn encode(&self, out: &mut Vec<u8>) {
                $($crate::codec::Wire::encode(&self.$field, out);)*
            }

            fn decode(reader: &mut $crate::codec::Reader<'_>) -> Result<Self, $crate::codec::CodecError> {
                $(let $field = reader.get()?;)*
                Ok(Self { $($field),* })
            }
        }
    };
}

/// Implements [`Wire`] for a field-less `#[repr(u8)]` enum by its number.
#[macro_export]
macro_rules! wire_enum {
    ($name:ident { $($variant:ident = $value:literal),* $(,)? }) => {
        impl $crate::codec::Wire for $name {
            fn encode(&self, out: &mut Vec<u8>) {
                out.push(match self { $(Self::$variant => $value),* });
            }

            fn decode(reader: &mut $crate::codec::Reader<'_>) -> Result<Self, $crate::codec::CodecError> {
                match reader.get::<u8>()? {
                    $($value => Ok(Self::$variant),)*
                    other => Err($crate::codec::CodecError::BadTag { what: stringify!($name), value: other.into() }),
                }
            }
        }
    };
}

wire_fields!(PgId { pool, index });
wire_fields!(ChunkId { vtree, layer, index });
wire_fields!(Version { epoch, sequence });
wire_fields!(Member { device, sds, incarnation });
wire_fields!(Generation { boot, counter, process });

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_list_that_lies_about_its_length_is_refused_without_allocating() {
        let bytes = u32::MAX.to_bytes();
        assert!(matches!(Vec::<u64>::from_bytes(&bytes), Err(CodecError::TooLong { .. })));
        let bytes = (MAX_LIST as u32).to_bytes();
        assert!(matches!(Vec::<u64>::from_bytes(&bytes), Err(CodecError::Truncated { .. })));
    }

    #[test]
    fn trailing_bytes_are_an_error() {
        assert_eq!(u8::from_bytes(&[1, 2]), Err(CodecError::TrailingBytes { extra: 1 }));
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(epoch: u64, sequence: u64, list: Vec<u32>, flag: bool, text in "[a-z]{0,20}") {
            let version = Version { epoch: Epoch(epoch), sequence: Sequence(sequence) };
            prop_assert_eq!(Version::from_bytes(&version.to_bytes()), Ok(version));
            prop_assert_eq!(Vec::<u32>::from_bytes(&list.to_bytes()), Ok(list));
            prop_assert_eq!(Option::<bool>::from_bytes(&Some(flag).to_bytes()), Ok(Some(flag)));
            prop_assert_eq!(String::from_bytes(&text.to_bytes()), Ok(text));
        }

        #[test]
        fn garbage_never_panics(bytes: Vec<u8>) {
            let _ = Vec::<Member>::from_bytes(&bytes);
            let _ = Option::<Generation>::from_bytes(&bytes);
            let _ = String::from_bytes(&bytes);
        }
    }
}
