//! The wire format of protobuf, as far as the API server uses it: fields by number, each a number or bytes.

use thiserror::Error;

/// Why bytes are no message.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum WireError {
    /// They end in the middle of a field.
    #[error("the message ends too early")]
    Short,
    /// A number has more than 64 bits.
    #[error("a number of the message is too large")]
    Number,
    /// A field is of a kind that no API object has.
    #[error("the message has a field of the unknown kind {0}")]
    Kind(u8),
    /// A text is not UTF-8.
    #[error("a text of the message is not UTF-8")]
    Text,
    /// Bytes where a number should be, or the other way round.
    #[error("a field of the message is not what it should be")]
    Value,
}

/// What a field holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    /// A number, or a truth.
    Number(u64),
    /// Text, bytes or another message.
    Bytes(&'a [u8]),
    /// Four or eight bytes, of which no object that is read here has any.
    Fixed,
}

impl<'a> Value<'a> {
    /// Another message, or bytes.
    ///
    /// # Errors
    /// When it is a number.
    pub const fn bytes(self) -> Result<&'a [u8], WireError> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            Self::Number(_) | Self::Fixed => Err(WireError::Value),
        }
    }

    /// Text.
    ///
    /// # Errors
    /// When it is no text.
    pub fn text(self) -> Result<String, WireError> {
        std::str::from_utf8(self.bytes()?).map(str::to_owned).map_err(|_| WireError::Text)
    }

    /// A whole number, negative ones in 64 bits.
    ///
    /// # Errors
    /// When it is no number.
    pub const fn number(self) -> Result<i64, WireError> {
        match self {
            Self::Number(number) => Ok(number.cast_signed()),
            Self::Bytes(_) | Self::Fixed => Err(WireError::Value),
        }
    }
}

/// Reads the fields of a message in the order in which they stand.
pub fn fields(message: &[u8]) -> impl Iterator<Item = Result<(u64, Value<'_>), WireError>> {
    let mut rest = message;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let read = field(&mut rest);
        if read.is_err() {
            rest = &[];
        }
        Some(read)
    })
}

fn field<'a>(rest: &mut &'a [u8]) -> Result<(u64, Value<'a>), WireError> {
    let tag = varint(rest)?.ok_or(WireError::Short)?;
    let value = match tag & 7 {
        0 => Value::Number(varint(rest)?.ok_or(WireError::Short)?),
        1 => take(rest, 8).map(|_| Value::Fixed)?,
        2 => {
            let length = varint(rest)?.ok_or(WireError::Short)?;
            Value::Bytes(take(rest, usize::try_from(length).map_err(|_| WireError::Short)?)?)
        }
        5 => take(rest, 4).map(|_| Value::Fixed)?,
        kind => return Err(WireError::Kind(u8::try_from(kind).unwrap_or(u8::MAX))),
    };
    Ok((tag >> 3, value))
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Result<&'a [u8], WireError> {
    let (taken, after) = rest.split_at_checked(length).ok_or(WireError::Short)?;
    *rest = after;
    Ok(taken)
}

/// Reads a number of seven bits a byte; nothing where its end is not there yet.
///
/// # Errors
/// When it has more than 64 bits.
pub fn varint(rest: &mut &[u8]) -> Result<Option<u64>, WireError> {
    let mut number = 0_u64;
    for (at, byte) in rest.iter().enumerate() {
        let shift = 7 * at;
        if shift > 63 || (shift == 63 && *byte > 1) {
            return Err(WireError::Number);
        }
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            *rest = rest.get(at + 1..).unwrap_or_default();
            return Ok(Some(number));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_come_in_their_order() {
        let message = [0x08, 0x96, 0x01, 0x12, 2, b'h', b'i', 0x1d, 1, 2, 3, 4];
        let read: Result<Vec<_>, _> = fields(&message).collect();
        assert_eq!(read.unwrap(), [(1, Value::Number(150)), (2, Value::Bytes(b"hi")), (3, Value::Fixed)]);
    }

    #[test]
    fn what_is_cut_short_or_endless_is_refused() {
        let outcome = |message: &[u8]| fields(message).find_map(Result::err);
        assert_eq!(outcome(&[0x12, 3, b'h']), Some(WireError::Short));
        assert_eq!(outcome(&[0x08, 0x80]), Some(WireError::Short));
        assert_eq!(outcome(&[0xff; 11]), Some(WireError::Number));
        assert_eq!(outcome(&[0x0b]), Some(WireError::Kind(3)));
    }
}
