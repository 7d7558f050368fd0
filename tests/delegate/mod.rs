//! A store that is another one except for what a test writes itself.

/// Operations of `kvpipe::store::Store` that go on to the store in a field of `self`:
/// `delegate!(0: set get add)` for the field `0`.
macro_rules! delegate {
    ($field:tt: $($operation:ident)*) => { $(delegate!(@$operation $field);)* };
    (@set $field:tt) => {
        async fn set(&self, key: &str, value: bytes::Bytes, timeout: std::time::Duration) -> kvpipe::Result<()> {
            self.$field.set(key, value, timeout).await
        }
    };
    (@get $field:tt) => {
        async fn get(&self, key: &str, timeout: std::time::Duration) -> kvpipe::Result<bytes::Bytes> {
            self.$field.get(key, timeout).await
        }
    };
    (@add $field:tt) => {
        async fn add(&self, key: &str, delta: i64, timeout: std::time::Duration) -> kvpipe::Result<i64> {
            self.$field.add(key, delta, timeout).await
        }
    };
    (@check $field:tt) => {
        async fn check(&self, keys: &[&str], timeout: std::time::Duration) -> kvpipe::Result<bool> {
            self.$field.check(keys, timeout).await
        }
    };
    (@wait $field:tt) => {
        async fn wait(&self, keys: &[&str], timeout: std::time::Duration) -> kvpipe::Result<()> {
            self.$field.wait(keys, timeout).await
        }
    };
    (@delete $field:tt) => {
        async fn delete(&self, key: &str, timeout: std::time::Duration) -> kvpipe::Result<bool> {
            self.$field.delete(key, timeout).await
        }
    };
    (@append $field:tt) => {
        async fn append(&self, key: &str, value: bytes::Bytes, timeout: std::time::Duration) -> kvpipe::Result<()> {
            self.$field.append(key, value, timeout).await
        }
    };
    (@compare_set $field:tt) => {
        async fn compare_set(&self, key: &str, expected: bytes::Bytes, desired: bytes::Bytes, timeout: std::time::Duration) -> kvpipe::Result<bytes::Bytes> {
            self.$field.compare_set(key, expected, desired, timeout).await
        }
    };
    (@multi_get $field:tt) => {
        async fn multi_get(&self, keys: &[&str], timeout: std::time::Duration) -> kvpipe::Result<Vec<bytes::Bytes>> {
            self.$field.multi_get(keys, timeout).await
        }
    };
    (@multi_set $field:tt) => {
        async fn multi_set(&self, pairs: &[(&str, bytes::Bytes)], timeout: std::time::Duration) -> kvpipe::Result<()> {
            self.$field.multi_set(pairs, timeout).await
        }
    };
    (@num_keys $field:tt) => {
        async fn num_keys(&self, timeout: std::time::Duration) -> kvpipe::Result<u64> {
            self.$field.num_keys(timeout).await
        }
    };
    (@list_keys $field:tt) => {
        async fn list_keys(&self, timeout: std::time::Duration) -> kvpipe::Result<Vec<String>> {
            self.$field.list_keys(timeout).await
        }
    };
    (@queue_push $field:tt) => {
        async fn queue_push(&self, key: &str, value: bytes::Bytes, timeout: std::time::Duration) -> kvpipe::Result<()> {
            self.$field.queue_push(key, value, timeout).await
        }
    };
    (@queue_pop $field:tt) => {
        async fn queue_pop(&self, key: &str, timeout: std::time::Duration) -> kvpipe::Result<bytes::Bytes> {
            self.$field.queue_pop(key, timeout).await
        }
    };
    (@try_queue_pop $field:tt) => {
        async fn try_queue_pop(&self, key: &str, timeout: std::time::Duration) -> kvpipe::Result<Option<bytes::Bytes>> {
            self.$field.try_queue_pop(key, timeout).await
        }
    };
    (@queue_len $field:tt) => {
        async fn queue_len(&self, key: &str, timeout: std::time::Duration) -> kvpipe::Result<u64> {
            self.$field.queue_len(key, timeout).await
        }
    };
    (@barrier $field:tt) => {
        async fn barrier(&self, key: &str, world_size: usize, timeout: std::time::Duration) -> kvpipe::Result<()> {
            self.$field.barrier(key, world_size, timeout).await
        }
    };
}
