//! From arguments to the settings of a pipe and its transport.

use std::env;
use std::fs;
use std::path::Path;
use std::time::Duration;

use kvpipe::PipeConfig;
use kvpipe::transport::store::StoreConfig;
use kvpipe::transport::tcp::{GroupName, Secret, TcpConfig};

use crate::args::{PipeArgs, RankArgs};
use crate::failure::Failure;

/// The limits of a pipe.
pub(crate) fn pipe_config(args: &PipeArgs, timeout: Duration) -> PipeConfig {
    let mut config = PipeConfig::default();
    if let Some(bytes) = args.buffer_size {
        config = config.with_buffer_bytes(bytes.0);
    }
    if let Some(bytes) = args.max_item_size {
        config.max_item_bytes = bytes.0;
    }
    config.close_timeout = timeout + MARGIN;
    config
}

/// Several deadlines pass at the same time if a peer never comes. The transport says best whom it
/// awaited, so the others leave it this much time, in which its last question to the store returns.
pub(crate) const MARGIN: Duration = Duration::from_secs(2);

/// The settings of the TCP transport. Reads the secret, if there is one.
pub(crate) fn tcp_config(args: &PipeArgs, group: &str, timeout: Duration) -> Result<TcpConfig, Failure> {
    let group = GroupName::new(group).map_err(|error| Failure::usage(format!("--group: {error}")))?;
    let secret = secret(args.secret_file.as_deref())?;
    let checksum = args.checksum;
    Ok(TcpConfig { group, secret, checksum, connect_timeout: timeout, ..TcpConfig::default() })
}

/// As [`tcp_config`], for a rank that is one of many commands.
pub(crate) fn rank_config(rank: &RankArgs) -> Result<TcpConfig, Failure> {
    if rank.heartbeat.0 < TcpConfig::HEARTBEAT_MIN {
        let least = TcpConfig::HEARTBEAT_MIN.as_secs_f64();
        return Err(Failure::usage(format!("--heartbeat {} is below {least} seconds", rank.heartbeat)));
    }
    let config = tcp_config(&rank.pipe, &rank.group, rank.timeout.0)?;
    Ok(TcpConfig { heartbeat: rank.heartbeat.0, reconnect_timeout: rank.reconnect.0, ..config })
}

/// What the two transports have in common. Values of a store are neither authenticated nor checked
/// again.
pub(crate) fn store_config(tcp: TcpConfig) -> StoreConfig {
    let TcpConfig { group, connect_timeout, heartbeat, reconnect_timeout, entropy, pool, .. } = tcp;
    StoreConfig {
        group,
        connect_timeout,
        heartbeat,
        reconnect_timeout,
        entropy,
        pool,
        ..StoreConfig::default()
    }
}

/// Where the secret comes from if no file is given. Not from an argument: everybody can see those.
const SECRET_VARIABLE: &str = "KVPIPE_SECRET";

fn secret(file: Option<&Path>) -> Result<Option<Secret>, Failure> {
    let (bytes, origin) = match file {
        Some(path) => {
            let origin = format!("the secret file {}", path.display());
            let bytes = fs::read(path).map_err(|error| Failure::io(format!("reading {origin}"), &error))?;
            (without_line_break(bytes), origin)
        }
        None => match env::var_os(SECRET_VARIABLE) {
            Some(value) => {
                (value.into_encoded_bytes(), format!("the environment variable {SECRET_VARIABLE}"))
            }
            None => return Ok(None),
        },
    };
    let secret = Secret::new(bytes).map_err(|error| Failure::new(format!("{origin}: {error}")))?;
    Ok(Some(secret))
}

/// Editors and `echo` end a file with a line break, which is not meant.
fn without_line_break(mut bytes: Vec<u8>) -> Vec<u8> {
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
        if bytes.last() == Some(&b'\r') {
            bytes.pop();
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_break_at_the_end_is_no_part_of_a_secret() {
        for (file, secret) in
            [("s", "s"), ("s\n", "s"), ("s\r\n", "s"), ("s\n\n", "s\n"), ("\ns", "\ns"), ("\n", "")]
        {
            assert_eq!(without_line_break(file.into()), secret.as_bytes(), "{file:?}");
        }
    }
}
