//! A peer that lies: the inbox refuses before anything is allocated, whatever the wire says.

use kvpipe::transport::{Inbox, Incoming};
use kvpipe::{Error, Link, Pipe, PipeConfig, Result};
use kvpipe_sim::conformance::support::{drain_numbers, numbered};

use crate::faults;

/// A wire that announces one good item and then one over the limit.
struct Liar;

impl Incoming for Liar {
    fn link(&self) -> Link {
        Link::new(1, 0)
    }

    async fn run(self, items: &Inbox) -> Result<()> {
        items.reserve(8).await?.fill(numbered(0, 8))?;
        items.reserve(items.max_item_bytes() + 1).await.map(drop)
    }
}

#[test]
fn an_announced_item_over_the_limit_is_refused_and_takes_no_room() {
    faults::run(|| async {
        let config = PipeConfig { max_item_bytes: 100, ..PipeConfig::default() };
        let (pipe, driver) = Pipe::receive_only(Liar, config);
        driver.await;
        let (received, end) = drain_numbers(&pipe).await;
        assert_eq!(received, [0], "what came before is not lost");
        assert!(matches!(end, Error::TooLarge { bytes: 101, limit: 100 }), "{end}");
        assert_eq!(pipe.stats().receive.unwrap().held_bytes_max, 8);
    });
}
