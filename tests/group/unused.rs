//! What a store in a test need not have.

/// The operations that neither groups nor pipes use: a test in which they do fails.
macro_rules! unused_operations {
    () => {
        async fn append(&self, key: &str, _: Bytes, _: Duration) -> Result<()> {
            panic!("append to {key:?}")
        }

        async fn multi_get(&self, keys: &[&str], _: Duration) -> Result<Vec<Bytes>> {
            panic!("multi_get of {keys:?}")
        }

        async fn multi_set(&self, pairs: &[(&str, Bytes)], _: Duration) -> Result<()> {
            panic!("multi_set of {pairs:?}")
        }

        async fn num_keys(&self, _: Duration) -> Result<u64> {
            panic!("num_keys")
        }

        async fn list_keys(&self, _: Duration) -> Result<Vec<String>> {
            panic!("list_keys")
        }

        async fn queue_push(&self, key: &str, _: Bytes, _: Duration) -> Result<()> {
            panic!("queue_push to {key:?}")
        }

        async fn queue_pop(&self, key: &str, _: Duration) -> Result<Bytes> {
            panic!("queue_pop of {key:?}")
        }

        async fn try_queue_pop(&self, key: &str, _: Duration) -> Result<Option<Bytes>> {
            panic!("try_queue_pop of {key:?}")
        }

        async fn queue_len(&self, key: &str, _: Duration) -> Result<u64> {
            panic!("queue_len of {key:?}")
        }

        async fn barrier(&self, key: &str, _: usize, _: Duration) -> Result<()> {
            panic!("barrier {key:?}")
        }
    };
}

pub(crate) use unused_operations;
