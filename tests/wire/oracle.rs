//! wincode, an independent and maintained implementation of bincode's format, gives the same bytes.
//! So bincode can be replaced without anybody on the wire noticing.

use kvpipe::wire::Metadata;
use proptest::prelude::*;
use wincode::config::{Configuration, Deserialize, Serialize};
use wincode::containers;
use wincode::len::FixIntLen;

use crate::message::{Message, any_hello, any_metadata};

/// Version, tag, dtype, dimensions behind their count as one byte, payload length.
type TensorSchema = (u8, u8, u8, containers::Vec<u64, FixIntLen<u8>>, u64);

type EndpointSchema = (String, u32, u32, u32, [u8; 16], [u8; 32], u64, u32, bool, bool);

/// Version, endpoint, session of the peer.
type HelloSchema = (u16, EndpointSchema, Option<[u8; 16]>);

proptest! {
    #[test]
    fn wincode_writes_and_reads_the_same_metadata(metadata in any_metadata()) {
        let config = Configuration::default();
        match metadata {
            Metadata::None => {
                prop_assert_eq!(<(u8, u8)>::serialize(&(1, 0), config).unwrap(), metadata.encode());
            }
            Metadata::Tensor(tensor) => {
                let dims = tensor.shape().dims().iter().map(|dim| *dim as u64).collect();
                let fields = (1, 1, tensor.dtype().code(), dims, tensor.payload_bytes() as u64);
                prop_assert_eq!(TensorSchema::serialize(&fields, config).unwrap(), metadata.encode());
                prop_assert_eq!(TensorSchema::deserialize(&metadata.encode(), config).unwrap(), fields);
            }
        }
    }

    #[test]
    fn wincode_writes_and_reads_the_same_hello(hello in any_hello()) {
        let config = Configuration::default();
        let end = &hello.endpoint;
        let endpoint = (
            end.group.to_string(),
            end.from_rank,
            end.to_rank,
            end.world_size,
            end.session,
            end.nonce,
            end.max_item_bytes,
            end.heartbeat_ms,
            end.checksum,
            end.authenticated,
        );
        let fields = (1, endpoint, hello.peer_session);
        prop_assert_eq!(HelloSchema::serialize(&fields, config).unwrap(), hello.body());
        prop_assert_eq!(HelloSchema::deserialize(&hello.body(), config).unwrap(), fields);
    }
}
