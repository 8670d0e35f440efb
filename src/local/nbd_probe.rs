//! Whether an NBD export can be opened, asked as a client would: fixed newstyle, `NBD_OPT_INFO` (NBD protocol document,
//! "Option types"). `up` prints an address only after it answered.

use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

const TIMEOUT: Duration = Duration::from_secs(1);
const INIT_MAGIC: &[u8; 8] = b"NBDMAGIC";
const OPTION_MAGIC: &[u8; 8] = b"IHAVEOPT";
const REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const FIXED_NEWSTYLE: u32 = 1;
const OPT_ABORT: u32 = 2;
const OPT_INFO: u32 = 6;
const REP_ACK: u32 = 1;
/// Replies with this bit set are refusals.
const REP_ERROR: u32 = 1 << 31;
/// No reply to `NBD_OPT_INFO` is longer.
const MOST_REPLY_BYTES: u32 = 64 << 10;

/// Returns whether the server at `address` would open `export`.
pub(crate) fn is_open(address: SocketAddr, export: &str) -> io::Result<bool> {
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting)?;
    if &greeting[..8] != INIT_MAGIC || &greeting[8..16] != OPTION_MAGIC {
        return Err(io::Error::other("it speaks no fixed newstyle NBD"));
    }
    stream.write_all(&FIXED_NEWSTYLE.to_be_bytes())?;
    let mut wish = (export.len() as u32).to_be_bytes().to_vec();
    wish.extend(export.as_bytes());
    wish.extend(0_u16.to_be_bytes()); // no further information is asked for
    send_option(&mut stream, OPT_INFO, &wish)?;
    let open = loop {
        match read_reply(&mut stream)? {
            REP_ACK => break true,
            kind if kind & REP_ERROR != 0 => break false,
            _ => {} // information about the export, before the ACK
        }
    };
    send_option(&mut stream, OPT_ABORT, &[])?;
    Ok(open)
}

fn send_option(stream: &mut TcpStream, option: u32, data: &[u8]) -> io::Result<()> {
    let mut message = OPTION_MAGIC.to_vec();
    message.extend(option.to_be_bytes());
    message.extend((data.len() as u32).to_be_bytes());
    message.extend(data);
    stream.write_all(&message)
}

/// Reads one reply and returns its type.
fn read_reply(stream: &mut TcpStream) -> io::Result<u32> {
    let mut header = [0; 20];
    stream.read_exact(&mut header)?;
    let word = |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().expect("four bytes"));
    let magic = u64::from_be_bytes(header[..8].try_into().expect("eight bytes"));
    let length = word(16);
    if magic != REPLY_MAGIC || length > MOST_REPLY_BYTES {
        return Err(io::Error::other("its reply is no NBD"));
    }
    io::copy(&mut stream.take(length.into()), &mut io::sink())?;
    Ok(word(12))
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, thread};

    use super::*;

    /// A server that answers one `NBD_OPT_INFO` with one reply.
    fn server(reply: u32) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(b"NBDMAGICIHAVEOPT\x00\x03").unwrap();
            let mut asked = vec![0; 4 + 16 + 4 + "demo".len() + 2];
            stream.read_exact(&mut asked).unwrap();
            assert_eq!(&asked[24..28], b"demo");
            let mut answer = REPLY_MAGIC.to_be_bytes().to_vec();
            for word in [OPT_INFO, reply, 0] {
                answer.extend(word.to_be_bytes());
            }
            stream.write_all(&answer).unwrap();
            stream.read_exact(&mut [0; 16]).unwrap();
        });
        address
    }

    #[test]
    fn an_acknowledged_export_is_open_and_an_unknown_one_is_not() {
        assert!(is_open(server(REP_ACK), "demo").unwrap());
        assert!(!is_open(server(REP_ERROR | 6), "demo").unwrap());
    }

    #[test]
    fn nobody_there_is_an_error() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        assert!(is_open(address, "demo").is_err());
    }
}
