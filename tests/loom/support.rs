//! Running models, and transports whose steps a model writes itself.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Once;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use kvpipe::transport::{Inbox, Incoming, Outbox, Outgoing};
use kvpipe::{DType, Item, Link, PipeConfig, Result, Shape, Tensor};

/// Explores every interleaving of `model` with at most `preemptions` preemptions, and prints how
/// many there were.
pub(crate) fn explore(name: &str, preemptions: usize, model: impl Fn() + Send + Sync + 'static) {
    let executions = executions(name, Some(preemptions), model);
    println!("{name}: {executions} executions at bound {preemptions}");
}

/// Explores every interleaving of `model` within the bound, if there is one, and counts them. If one
/// fails, says which.
pub(crate) fn executions(
    name: &str,
    preemptions: Option<usize>,
    model: impl Fn() + Send + Sync + 'static,
) -> usize {
    static NAMING: Once = Once::new();
    NAMING.call_once(name_the_model_that_fails);
    UNDER_WAY.set((name.to_owned(), 0));
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = preemptions;
    builder.max_branches = 20_000;
    builder.check(move || {
        UNDER_WAY.with_borrow_mut(|(_, execution)| *execution += 1);
        model();
    });
    UNDER_WAY.take().1
}

std::thread_local! {
    /// The model that this thread explores, with all of loom's threads in it, and the execution.
    static UNDER_WAY: RefCell<(String, usize)> = RefCell::default();
}

/// In the panic's hook, because a deadlock of loom's often ends in an abort.
fn name_the_model_that_fails() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        before(panic);
        UNDER_WAY.with_borrow(|(name, execution)| eprintln!("{name}: failed at execution {execution}"));
    }));
}

/// An item with `bytes` of payload, each of them `mark`.
pub(crate) fn item(bytes: usize, mark: u8) -> Item {
    let shape = Shape::new(&[bytes]).unwrap();
    Some(Tensor::new(DType::UInt8, shape, Bytes::from(vec![mark; bytes])).unwrap())
}

/// The mark of an item.
pub(crate) fn mark(item: &Item) -> u8 {
    item.as_ref().unwrap().bytes().unwrap()[0]
}

pub(crate) fn budget(bytes: usize) -> PipeConfig {
    PipeConfig::default().with_buffer_bytes(bytes)
}

/// A budget, and no patience with a transport that lets a close wait.
pub(crate) fn impatient(bytes: usize) -> PipeConfig {
    let mut config = budget(bytes);
    config.close_timeout = Duration::ZERO;
    config
}

pub(crate) type Steps<'a> = Pin<Box<dyn Future<Output = Result<()>> + Send + 'a>>;

/// A sending direction that does what the model says.
pub(crate) fn consumer<F>(steps: F) -> Consumer<F>
where
    F: for<'a> FnOnce(&'a Outbox) -> Steps<'a> + Send + 'static,
{
    Consumer(steps)
}

/// A receiving direction that does what the model says.
pub(crate) fn producer<F>(steps: F) -> Producer<F>
where
    F: for<'a> FnOnce(&'a Inbox) -> Steps<'a> + Send + 'static,
{
    Producer(steps)
}

/// See [`consumer`].
pub(crate) struct Consumer<F>(F);

impl<F> Outgoing for Consumer<F>
where
    F: for<'a> FnOnce(&'a Outbox) -> Steps<'a> + Send + 'static,
{
    fn link(&self) -> Link {
        Link::new(0, 1)
    }

    async fn run(self, items: &Outbox) -> Result<()> {
        (self.0)(items).await
    }
}

/// See [`producer`].
pub(crate) struct Producer<F>(F);

impl<F> Incoming for Producer<F>
where
    F: for<'a> FnOnce(&'a Inbox) -> Steps<'a> + Send + 'static,
{
    fn link(&self) -> Link {
        Link::new(1, 0)
    }

    async fn run(self, items: &Inbox) -> Result<()> {
        (self.0)(items).await
    }
}

/// Takes and settles items until the end of the stream.
pub(crate) fn drain(items: &Outbox) -> Steps<'_> {
    Box::pin(async move {
        while let Some((sequence, _)) = items.next().await? {
            items.settle(sequence + 1);
        }
        Ok(())
    })
}

/// Runs both futures in this thread.
pub(crate) async fn join<L: Future, R: Future>(left: L, right: R) -> (L::Output, R::Output) {
    let (mut left, mut right) = (pin!(left), pin!(right));
    let (mut left_output, mut right_output) = (None, None);
    poll_fn(|context| {
        if left_output.is_none()
            && let Poll::Ready(output) = left.as_mut().poll(context)
        {
            left_output = Some(output);
        }
        if right_output.is_none()
            && let Poll::Ready(output) = right.as_mut().poll(context)
        {
            right_output = Some(output);
        }
        match left_output.is_some() && right_output.is_some() {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    })
    .await;
    (left_output.unwrap(), right_output.unwrap())
}

/// Polls `future` once, and says whether it was ready.
pub(crate) async fn poll_once<F: Future + Unpin>(future: &mut F) -> bool {
    poll_fn(|context| Poll::Ready(Pin::new(&mut *future).poll(context).is_ready())).await
}

/// Polls `future` so often, and drops it if it is not ready then.
pub(crate) async fn polled<F: Future>(future: F, times: usize) -> Option<F::Output> {
    let mut future = pin!(future);
    for _ in 0..times {
        let polled = poll_fn(|context| Poll::Ready(future.as_mut().poll(context))).await;
        if let Poll::Ready(output) = polled {
            return Some(output);
        }
    }
    None
}
