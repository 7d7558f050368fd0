//! The bugs: each a change of kvpipe's own source, and who has to find it.

/// A known bug.
pub(crate) struct Bug {
    /// What it is called on the command line.
    pub(crate) name: &'static str,
    /// What is wrong, for people.
    pub(crate) what: &'static str,
    /// Where, the text that is there (once), and the text to put in its place.
    pub(crate) edits: &'static [(&'static str, &'static str, &'static str)],
    /// Who has to find it.
    pub(crate) finder: Finder,
}

/// Who has to find a bug.
pub(crate) enum Finder {
    /// The runner, in the standard mix.
    Seeds,
    /// A loom model of this name.
    Loom(&'static str),
}

const STATE: &str = "src/queue/state.rs";
const QUEUE: &str = "src/queue/mod.rs";
const SEND_SESSION: &str = "src/transport/session/send.rs";
const RECEIVE_SESSION: &str = "src/transport/session/receive.rs";
const TCP_OUT: &str = "src/transport/tcp/outgoing.rs";
const TCP_IN: &str = "src/transport/tcp/incoming.rs";
const INTAKE: &str = "src/transport/tcp/intake.rs";
const HOST: &str = "src/collective/host/mod.rs";
const OPERATION: &str = "src/collective/host/operation.rs";

const SKIPS_AN_ITEM: (&str, &str, &str) = (
    SEND_SESSION,
    "self.sent = received;",
    "let received = (received + 1).min(self.sent);\n        self.sent = received;",
);

pub(crate) const BUGS: &[Bug] = &[
    Bug {
        name: "budget-leak",
        what: "the budget is not given back when a send is given up",
        edits: &[(
            QUEUE,
            "        if !self.filled {\n",
            "        if !self.filled && self.bytes == usize::MAX {\n",
        )],
        finder: Finder::Seeds,
    },
    Bug {
        name: "early-acknowledgement",
        what: "an item is acknowledged before it is held",
        edits: &[
            (
                INTAKE,
                "        let permit = self.reserve(bytes).await?;\n",
                "        let permit = self.reserve(bytes).await?;\n        self.edge.session.lock().deliver();\n        self.acknowledge().await?;\n",
            ),
            (
                INTAKE,
                "        permit.fill(item)?;\n        self.edge.session.lock().deliver();\n",
                "        permit.fill(item)?;\n",
            ),
        ],
        finder: Finder::Seeds,
    },
    Bug {
        name: "resume-too-early",
        what: "a resumed stream begins with an item that was delivered",
        edits: &[(
            RECEIVE_SESSION,
            "        self.acknowledged = self.received;\n        self.finished = false;\n",
            "        self.received = self.received.saturating_sub(1);\n        self.acknowledged = self.received;\n        self.finished = false;\n",
        )],
        finder: Finder::Seeds,
    },
    Bug {
        name: "resume-too-late",
        what: "a resumed stream leaves out an item",
        edits: &[SKIPS_AN_ITEM],
        finder: Finder::Seeds,
    },
    Bug {
        name: "no-sequence-check",
        what: "the receiver does not look at sequence numbers, and the sender leaves out an item",
        edits: &[
            SKIPS_AN_ITEM,
            (
                RECEIVE_SESSION,
                "Frame::Item { sequence, metadata } if sequence == self.received =>",
                "Frame::Item { sequence, metadata } if sequence >= self.received =>",
            ),
            (
                RECEIVE_SESSION,
                "Frame::Close { items } if items == self.received =>",
                "Frame::Close { items } if items >= self.received =>",
            ),
        ],
        finder: Finder::Seeds,
    },
    Bug {
        name: "none-is-the-end",
        what: "a None is taken for the end of the stream",
        edits: &[(
            "src/pipe/receiver.rs",
            "            decided => decided,\n",
            "            Ok(None) => Err(Error::Closed),\n            decided => decided,\n",
        )],
        finder: Finder::Seeds,
    },
    Bug {
        name: "close-wakes-nobody",
        what: "who waits is not woken by a close",
        edits: &[(
            STATE,
            "        self.closed = true;\n        self.wake_everybody(after);\n",
            "        self.closed = true;\n        let _ = after;\n",
        )],
        finder: Finder::Loom("closing_while_a_sender_waits"),
    },
    Bug {
        name: "starvation",
        what: "small items overtake a large one that waits for room",
        edits: &[(
            STATE,
            "        if !self.producers.is_first(ticket) || !self.fits(bytes) {\n",
            "        let _ = ticket;\n        if !self.fits(bytes) {\n",
        )],
        finder: Finder::Loom("two_waiters_of_different_size_are_served_in_order"),
    },
    Bug {
        name: "key-not-deleted",
        what: "a group leaves its keys in the store",
        edits: &[(
            "src/group/lane.rs",
            "                store.delete(&key, UNBOUNDED).await?;\n",
            "                let _ = key;\n",
        )],
        finder: Finder::Seeds,
    },
    Bug {
        name: "barrier-left-early",
        what: "rank 0 leaves a barrier before the others have come",
        edits: &[(
            "src/group/keys.rs",
            "            Errand::Wait { keys: (1..world_size).map(arrived).collect() },\n            mark(go()),\n            Errand::Wait { keys: (1..world_size).map(left).collect() },\n",
            "            mark(go()),\n",
        )],
        finder: Finder::Seeds,
    },
    Bug {
        name: "heartbeat-ignored",
        what: "a silent peer is never given up",
        edits: &[(
            "src/transport/session/silence.rs",
            "        self.ticks >= SILENT_TICKS_MAX\n",
            "        self.ticks >= SILENT_TICKS_MAX * 1000\n",
        )],
        finder: Finder::Seeds,
    },
    Bug {
        name: "heartbeat-not-sent",
        what: "an idle receiver gives no sign of life",
        edits: &[(
            INTAKE,
            "            false => self.say(&Reply::Alive).await,\n",
            "            false => Ok(()),\n",
        )],
        finder: Finder::Seeds,
    },
    Bug {
        name: "one-executor",
        what: "receiving waits behind sending, as in vLLM's executor of one thread",
        edits: &[(
            "src/pipe/driver.rs",
            "        let order = if *incoming_first { [incoming, outgoing] } else { [outgoing, incoming] };\n",
            "        let mut nobody: Option<Direction> = None;\n        let order = if outgoing.is_some() { [outgoing, &mut nobody] } else { [incoming, &mut nobody] };\n",
        )],
        finder: Finder::Seeds,
    },
    Bug {
        name: "overshoot",
        what: "the budget is exceeded by one item",
        edits: &[(
            STATE,
            "        let within_budget = bytes <= self.spare_bytes();\n",
            "        let within_budget = self.held_bytes < self.limits.bytes;\n",
        )],
        finder: Finder::Seeds,
    },
    Bug {
        name: "two-senders-one-key",
        what: "two senders use one key, as vLLM's do, which does not name the source",
        edits: &[(
            "src/group/keys.rs",
            "{ src, dst }) => format!(\"kvpipe/{name}/send/{src}/{dst}/{n}\")",
            "{ dst, .. }) => format!(\"kvpipe/{name}/send/{dst}/{n}\")",
        )],
        finder: Finder::Seeds,
    },
    Bug {
        name: "failure-overtakes",
        what: "a failure hides items that have arrived",
        edits: &[(
            STATE,
            "        if let Some(slot) = self.slots.pop_front() {\n",
            "        if let Some(error) = &self.failure {\n            return Poll::Ready(Err(error.clone()));\n        }\n        if let Some(slot) = self.slots.pop_front() {\n",
        )],
        finder: Finder::Seeds,
    },
    Bug {
        name: "early-flush",
        what: "a flush returns when everything is on its way",
        edits: &[(
            STATE,
            "            _ if self.settled >= upto => Poll::Ready(Ok(())),\n",
            "            _ if self.handed_out >= upto => Poll::Ready(Ok(())),\n",
        )],
        finder: Finder::Seeds,
    },
    Bug {
        name: "undelivered-forgets",
        what: "items that were on their way are missing in `undelivered`",
        edits: &[(
            STATE,
            "            .zip(&self.slots)\n",
            "            .zip(&self.slots)\n            .filter(|(sequence, _)| *sequence >= self.handed_out)\n",
        )],
        finder: Finder::Seeds,
    },
    Bug {
        name: "false-certainty",
        what: "an item that the peer holds is said not to be in doubt",
        edits: &[(
            STATE,
            "                in_doubt: sequence < self.handed_out,\n",
            "                in_doubt: sequence > self.handed_out,\n",
        )],
        finder: Finder::Seeds,
    },
    Bug {
        name: "abort-as-close",
        what: "the peer is told that an aborted stream has ended gracefully",
        edits: &[(
            TCP_OUT,
            "        writer.write_bare(&Frame::Abort { reason: failure.to_string().into() }).await?;\n",
            "        let close = self.session.lock().close();\n        writer.write_bare(&close).await?;\n",
        )],
        finder: Finder::Seeds,
    },
    Bug {
        name: "wrong-taken",
        what: "a receiver that leaves miscounts what its user took",
        edits: &[(
            INTAKE,
            "        let taken = self.edge.items.taken();\n",
            "        let taken = self.edge.items.taken().saturating_sub(1);\n",
        )],
        finder: Finder::Seeds,
    },
    Bug {
        name: "waits-for-the-dead",
        what: "a receiver waits for ever for a sender that does not come back",
        edits: &[(
            TCP_IN,
            "                    () = &mut overdue => break,\n",
            "                    () = &mut overdue, if limit.is_zero() => break,\n",
        )],
        finder: Finder::Seeds,
    },
    Bug {
        name: "early-close",
        what: "a close succeeds before everything is acknowledged",
        edits: &[(
            "src/pipe/sender.rs",
            "        self.finish();\n        match self.side.queue.ended().await {\n",
            "        self.finish();\n        if self.side.queue.failure().is_none() {\n            return Ok(());\n        }\n        match self.side.queue.ended().await {\n",
        )],
        finder: Finder::Seeds,
    },
    Bug {
        name: "settles-one-more",
        what: "an acknowledgement counts for one item more",
        edits: &[(
            TCP_OUT,
            "                    Heard::Acknowledged(upto) => self.items.settle(upto),\n",
            "                    Heard::Acknowledged(upto) => self.items.settle(upto + 1),\n",
        )],
        finder: Finder::Seeds,
    },
    Bug {
        name: "short-read",
        what: "a payload that comes in parts is taken for whole after the first",
        edits: &[(
            INTAKE,
            "        while received < bytes {\n            received += self.read(Some(&mut buffer[received..])).await?;\n",
            "        if received < bytes {\n            received += self.read(Some(&mut buffer[received..])).await?;\n            let _ = received;\n",
        )],
        finder: Finder::Seeds,
    },
    Bug {
        name: "late-deadline",
        what: "a send with a deadline waits for twice as long",
        edits: &[(
            "src/pipe/sender.rs",
            "        match within(timeout, self.send(item)).await {\n",
            "        match within(timeout * 2, self.send(item)).await {\n",
        )],
        finder: Finder::Seeds,
    },
    Bug {
        name: "too-many-items",
        what: "one item more is held than may be",
        edits: &[(
            STATE,
            "(self.held_items < self.limits.items && ",
            "(self.held_items <= self.limits.items && ",
        )],
        finder: Finder::Seeds,
    },
    Bug {
        name: "messages-left-in-store",
        what: "neither end of a pipe over the store takes its keys away",
        edits: &[
            (
                "src/transport/store/native/outgoing.rs",
                "                self.store.sweep(keys.all_but_messages(), messages).await;\n                result\n",
                "                let _ = (keys.all_but_messages(), messages);\n                result\n",
            ),
            (
                "src/transport/store/native/incoming.rs",
                "    if !said {\n",
                "    if !said && met.keys.all_but_messages().is_empty() {\n",
            ),
        ],
        finder: Finder::Seeds,
    },
    Bug {
        name: "hasty-abort",
        what: "whoever aborts leaves before a receiver whose inbox is full has read it",
        edits: &[(
            TCP_OUT,
            "                let _ = reading.await;\n",
            "                let _ = timeout(GOODBYE, reading).await;\n",
        )],
        finder: Finder::Seeds,
    },
    Bug {
        name: "farewell-excused",
        what: "a receiver over the store waits for ever for one that said farewell and died",
        edits: &[(
            "src/transport/store/native/incoming.rs",
            "            pulse.set_waiting(true);\n",
            "            pulse.set_waiting(false);\n",
        )],
        finder: Finder::Seeds,
    },
    Bug {
        name: "one-fate",
        what: "a rank that loses the one it receives from gives up the one it sends to, as well",
        edits: &[
            (
                "src/pipe/sender.rs",
                "impl Sender {\n",
                "impl Sender {\n    pub(super) fn queue(&self) -> Arc<ByteQueue<Item>> {\n        Arc::clone(&self.side.queue)\n    }\n\n",
            ),
            (
                "src/pipe/receiver.rs",
                "impl Receiver {\n",
                "impl Receiver {\n    pub(super) fn queue(&self) -> Arc<ByteQueue<Item>> {\n        Arc::clone(&self.side.queue)\n    }\n\n",
            ),
            (
                "src/pipe/mod.rs",
                "        let pipe = Self { sender: Some(sender), receiver: Some(receiver) };\n",
                "        let (out, inbox) = (sender.queue(), receiver.queue());\n        let receive_driver: driver::Direction = Box::pin(async move {\n            receive_driver.await;\n            if let Some(error @ Error::PeerGone { .. }) = inbox.failure() {\n                out.fail(error);\n            }\n        });\n        let pipe = Self { sender: Some(sender), receiver: Some(receiver) };\n",
            ),
        ],
        finder: Finder::Seeds,
    },
    Bug {
        name: "unbounded-meeting",
        what: "a receiver waits for its peer for four times as long as it may",
        edits: &[(
            TCP_IN,
            "        let limit = self.config.connect_timeout;\n        let mut overdue",
            "        let limit = self.config.connect_timeout * 4;\n        let mut overdue",
        )],
        finder: Finder::Seeds,
    },
    Bug {
        name: "long-goodbye",
        what: "a receiver that leaves waits for twice as long as it may for a peer that does not answer",
        edits: &[(
            "src/pipe/driver.rs",
            "        inbox.closed().await;\n        sleep(patience).await;\n",
            "        inbox.closed().await;\n        sleep(patience * 2).await;\n",
        )],
        finder: Finder::Seeds,
    },
    Bug {
        name: "slow-barrier",
        what: "a barrier waits for twice as long as it may",
        edits: &[(
            "src/group/mod.rs",
            "tokio::time::timeout(timeout, self.pass_barrier()).await;\n",
            "tokio::time::timeout(timeout * 2, self.pass_barrier()).await;\n",
        )],
        finder: Finder::Seeds,
    },
    Bug {
        name: "mismatch-not-compared",
        what: "members of a group do not compare what they call",
        edits: &[(
            OPERATION,
            "if (*operation, call) != (self.number, self.call) {",
            "if *operation != self.number {",
        )],
        finder: Finder::Seeds,
    },
    Bug {
        name: "operation-not-counted",
        what: "a member that sends does not count it",
        edits: &[(
            OPERATION,
            "if from == mesh.members.rank => mesh.peers[to].sent += 1,",
            "if from == mesh.members.rank => mesh.peers[to].sent += 0,",
        )],
        finder: Finder::Seeds,
    },
    Bug {
        name: "step-too-early",
        what: "a member sends a part one step too early",
        edits: &[(OPERATION, "if message.after > self.step {", "if message.after > self.step + 1 {")],
        finder: Finder::Seeds,
    },
    Bug {
        name: "abort-not-forwarded",
        what: "a member whose group has failed leaves without saying why",
        edits: &[(
            "src/collective/host/keeper.rs",
            "mesh.take_leave(verdict.as_ref(), self.heartbeat);",
            "mesh.take_leave(None, self.heartbeat);",
        )],
        finder: Finder::Seeds,
    },
    Bug {
        name: "silent-member",
        what: "a silent member is never given up",
        edits: &[(
            "src/collective/host/mesh.rs",
            "            self.tick(cx, awaited)?;\n",
            "            let _ = awaited;\n",
        )],
        finder: Finder::Seeds,
    },
    Bug {
        name: "failure-forgotten",
        what: "a group whose operation has failed goes on",
        edits: &[(HOST, "ended.inspect_err(|error| self.lobby.fail(error.clone()))", "ended")],
        finder: Finder::Seeds,
    },
    Bug {
        name: "dropped-call",
        what: "a call that is dropped in the middle does not break its group",
        edits: &[(
            HOST,
            "        if !self.is_over {\n",
            "        if !self.is_over && self.call.to_string().is_empty() {\n",
        )],
        finder: Finder::Seeds,
    },
    Bug {
        name: "keeper-left-behind",
        what: "the task beside a group that is dropped goes on for ever",
        edits: &[(
            HOST,
            "    fn drop(&mut self) {\n        self.leaving.notify_one();\n",
            "    fn drop(&mut self) {\n",
        )],
        finder: Finder::Seeds,
    },
    Bug {
        name: "patient-operation",
        what: "an operation waits for twice as long as it may",
        edits: &[(HOST, "let deadline = after(limit);", "let deadline = after(limit * 2);")],
        finder: Finder::Seeds,
    },
    Bug {
        name: "input-misplaced",
        what: "in place, the first part is taken for every member's own",
        edits: &[(
            "src/collective/request.rs",
            "Operation::AllGather { .. } => self.parts[..rank].iter().sum(),",
            "Operation::AllGather { .. } => self.parts[..rank].len() * 0,",
        )],
        finder: Finder::Seeds,
    },
];
