//! Writes objects straight into etcd, as the API server stores them: creating thousands of Services by the API takes minutes.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;

use serde_json::{Value, json};

use crate::space::Space;

/// What etcd takes in one transaction.
const AT_ONCE: usize = 128;
const ADDRESS: &str = "127.0.0.1:2379";

/// An object and where it is kept, below `/registry`.
pub struct Stored {
    pub key: String,
    pub object: Value,
}

/// A connection to etcd's JSON gateway.
pub struct Etcd {
    stream: BufReader<TcpStream>,
}

impl Etcd {
    /// Connects to the one in a namespace.
    pub fn connect(space: &Space) -> Self {
        let stream = space.within(|| TcpStream::connect(ADDRESS).unwrap());
        stream.set_nodelay(true).unwrap();
        Self { stream: BufReader::new(stream) }
    }

    /// Writes all of them.
    pub fn put(&mut self, objects: &[Stored]) {
        for chunk in objects.chunks(AT_ONCE) {
            let put = |stored: &Stored| {
                let key = base64(format!("/registry/{}", stored.key).as_bytes());
                json!({ "requestPut": { "key": key, "value": base64(stored.object.to_string().as_bytes()) } })
            };
            let answer = self.post("/v3/kv/txn", &json!({ "success": chunk.iter().map(put).collect::<Vec<_>>() }));
            assert_eq!(answer["succeeded"], true, "etcd: {answer}");
        }
    }

    fn post(&mut self, path: &str, body: &Value) -> Value {
        let body = body.to_string();
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: {ADDRESS}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        let stream = self.stream.get_mut();
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(body.as_bytes()).unwrap();
        let (mut length, mut is_chunked) = (0, false);
        let status = self.line();
        loop {
            let line = self.line().to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
            is_chunked |= line.starts_with("transfer-encoding:") && line.contains("chunked");
        }
        let mut answer = Vec::new();
        if is_chunked {
            loop {
                let size = usize::from_str_radix(&self.line(), 16).unwrap();
                answer.extend(self.bytes(size));
                self.line();
                if size == 0 {
                    break;
                }
            }
        } else {
            answer = self.bytes(length);
        }
        assert!(status.contains(" 200 "), "etcd: {status} {}", String::from_utf8_lossy(&answer));
        serde_json::from_slice(&answer).unwrap()
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stream.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.stream.read_exact(&mut bytes).unwrap();
        bytes
    }
}

/// RFC 4648 §4.
fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let byte = |at: usize| u32::from(chunk.get(at).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for at in 0..4 {
            let letter = LETTERS[((bits >> (18 - 6 * at)) & 63) as usize];
            text.push(if at <= chunk.len() { char::from(letter) } else { '=' });
        }
    }
    text
}
