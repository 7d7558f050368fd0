//! The stack machine that reads one pickle.
//!
//! It has no recursion, and no value owns another: members of tuples, dicts and lists lie in two flat
//! lists. Each operation adds at most a few entries somewhere, so that [`OPERATIONS_MAX`] alone bounds
//! the stack, the memo, the nesting and the memory.

use super::opcode as op;
use super::value::{Global, Kinds, Owner, Span, Value};
use crate::tensor::MAX_DIMS;
use crate::wire::DecodeError;

/// The most operations of one pickle. A tensor of [`MAX_DIMS`] dimensions takes about 80.
pub(super) const OPERATIONS_MAX: usize = 128;

/// The longest module or name of a global, in bytes; vLLM's takes 52.
const NAME_BYTES_MAX: usize = 128;

/// A pickle that was read to its end.
pub(super) struct Pickle<'a> {
    pub(super) root: Value<'a>,
    /// Where in the message it ends.
    pub(super) end: usize,
    members: Vec<Value<'a>>,
    entries: Vec<(Owner, Value<'a>, Value<'a>)>,
}

impl<'a> Pickle<'a> {
    /// The members of a tuple, or the arguments of a call.
    pub(super) fn members(&self, span: Span) -> &[Value<'a>] {
        self.members.get(span.range()).unwrap_or_default()
    }

    /// Keys and values of a dict; for a list, its members as the values.
    pub(super) fn entries(&self, owner: Owner) -> impl Iterator<Item = (Value<'a>, Value<'a>)> {
        let owned = self.entries.iter().filter(move |entry| entry.0 == owner);
        owned.map(|(_, key, value)| (*key, *value))
    }
}

/// Reads the pickle that begins at `start` and may be one of `kinds`; what follows it is the caller's
/// concern. Offsets in errors count from the beginning of `message`.
pub(super) fn read(message: &[u8], start: usize, kinds: Kinds) -> Result<Pickle<'_>, DecodeError> {
    let mut machine = Machine::new(message, start, kinds);
    machine.protocol()?;
    for _ in 0..OPERATIONS_MAX {
        if let Some(root) = machine.step()? {
            let Machine { position, members, entries, .. } = machine;
            return Ok(Pickle { root, end: position, members, entries });
        }
    }
    Err(machine.refused(format!("more than {OPERATIONS_MAX} operations")))
}

struct Machine<'a> {
    message: &'a [u8],
    position: usize,
    kinds: Kinds,
    /// Offset and opcode of the operation that is being carried out.
    current: (usize, u8),
    stack: Vec<Value<'a>>,
    /// Heights of the stack.
    marks: Vec<usize>,
    memo: Vec<Value<'a>>,
    members: Vec<Value<'a>>,
    /// Of dicts and lists, which are filled after they were made.
    entries: Vec<(Owner, Value<'a>, Value<'a>)>,
    owners: usize,
}

impl<'a> Machine<'a> {
    fn new(message: &'a [u8], start: usize, kinds: Kinds) -> Self {
        Self {
            message,
            position: start,
            kinds,
            current: (start, 0),
            stack: Vec::new(),
            marks: Vec::new(),
            memo: Vec::new(),
            members: Vec::new(),
            entries: Vec::new(),
            owners: 0,
        }
    }

    fn protocol(&mut self) -> Result<(), DecodeError> {
        let [code, protocol] = self.array()?;
        self.current.1 = code;
        if code != op::PROTO {
            return Err(self.refused("a pickle begins with its protocol".into()));
        }
        if !self.kinds.protocols().contains(&protocol) {
            return Err(self.refused(format!("protocol {protocol}")));
        }
        Ok(())
    }

    /// Carries out the next operation. What the pickle is, if that was the last one.
    fn step(&mut self) -> Result<Option<Value<'a>>, DecodeError> {
        let offset = self.position;
        let [code] = self.array()?;
        self.current = (offset, code);
        if !op::kinds(code).is_some_and(|kinds| kinds.overlap(self.kinds)) {
            return Err(self.refused("not allowed here".into()));
        }
        match code {
            op::STOP => return self.stop().map(Some),
            op::FRAME => self.frame()?,
            op::MARK => self.marks.push(self.stack.len()),
            op::MEMOIZE => self.memoize(self.memo.len())?,
            op::BINPUT => {
                let [index] = self.array()?;
                self.memoize(index.into())?;
            }
            op::LONG_BINPUT => {
                let index = u32::from_le_bytes(self.array()?);
                self.memoize(index as usize)?;
            }
            op::SETITEM | op::APPEND => {
                let first = self.below(if code == op::SETITEM { 2 } else { 1 })?;
                self.fill(first)?;
            }
            op::SETITEMS | op::APPENDS => {
                let first = self.unmark()?;
                self.fill(first)?;
            }
            _ => {
                let value = self.value(code)?;
                self.stack.push(value);
            }
        }
        Ok(None)
    }

    /// The value that an operation leaves on the stack.
    fn value(&mut self, code: u8) -> Result<Value<'a>, DecodeError> {
        Ok(match code {
            op::NONE => Value::None,
            op::NEWTRUE | op::NEWFALSE => Value::Bool(code == op::NEWTRUE),
            op::BININT1 => Value::Int(u8::from_le_bytes(self.array()?).into()),
            op::BININT2 => Value::Int(u16::from_le_bytes(self.array()?).into()),
            op::BININT => Value::Int(i32::from_le_bytes(self.array()?).into()),
            op::LONG1 => {
                let length = self.length::<1>()?;
                long(self.take(length)?)
            }
            op::SHORT_BINUNICODE | op::BINUNICODE => {
                let length = if code == op::BINUNICODE { self.length::<4>()? } else { self.length::<1>()? };
                let text = self.take(length)?;
                Value::Text(str::from_utf8(text).map_err(|_| self.refused("not utf-8".into()))?)
            }
            op::SHORT_BINBYTES | op::BINBYTES | op::BINBYTES8 => {
                let len = match code {
                    op::SHORT_BINBYTES => self.length::<1>()?,
                    op::BINBYTES => self.length::<4>()?,
                    _ => self.length::<8>()?,
                };
                let start = self.position;
                self.take(len)?;
                Value::Bytes(Span { start, len })
            }
            op::EMPTY_TUPLE => self.tuple(0)?,
            op::TUPLE1 => self.tuple(1)?,
            op::TUPLE2 => self.tuple(2)?,
            op::TUPLE3 => self.tuple(3)?,
            op::TUPLE => {
                let mark = self.unmark()?;
                self.tuple(self.stack.len() - mark)?
            }
            op::EMPTY_DICT => Value::Dict(self.owner()),
            op::EMPTY_LIST => Value::List(self.owner()),
            op::GLOBAL => {
                let (module, name) = (self.line()?, self.line()?);
                self.global(module, name)?
            }
            op::STACK_GLOBAL => match self.pop()? {
                [Value::Text(module), Value::Text(name)] => self.global(module, name)?,
                _ => return Err(self.refused("a global is named by two texts".into())),
            },
            op::REDUCE => match self.pop()? {
                [Value::Global(global), Value::Tuple(arguments)] => Value::Call(global, arguments),
                _ => return Err(self.refused("a call takes a global and a tuple".into())),
            },
            op::BINPERSID => match self.pop()? {
                [Value::Tuple(members)] => Value::Reference(members),
                _ => return Err(self.refused("a persistent id is a tuple".into())),
            },
            op::BINGET => {
                let [index] = self.array()?;
                self.recall(index.into())?
            }
            op::LONG_BINGET => {
                let index = u32::from_le_bytes(self.array()?);
                self.recall(index as usize)?
            }
            _ => return Err(self.refused("not allowed here".into())),
        })
    }

    fn stop(&mut self) -> Result<Value<'a>, DecodeError> {
        match (&self.stack[..], &self.marks[..]) {
            ([root], []) => Ok(*root),
            (stack, _) => Err(self.refused(format!("{} values are left, not one", stack.len()))),
        }
    }

    /// Frames tell a reader of a stream how much to read ahead. All of this one is here already.
    fn frame(&mut self) -> Result<(), DecodeError> {
        let length = self.length::<8>()?;
        let rest = self.message.len() - self.position;
        if length > rest {
            return Err(self.refused(format!("a frame of {length} bytes, where {rest} are left")));
        }
        Ok(())
    }

    /// Picklers number the memo from 0 on.
    fn memoize(&mut self, index: usize) -> Result<(), DecodeError> {
        if index != self.memo.len() {
            let next = self.memo.len();
            return Err(self.refused(format!("the memo's next entry is {next}, not {index}")));
        }
        let [top] = self.pop()?;
        self.memo.push(top);
        self.stack.push(top);
        Ok(())
    }

    fn recall(&self, index: usize) -> Result<Value<'a>, DecodeError> {
        let remembered = self.memo.get(index).copied();
        remembered.ok_or_else(|| self.refused(format!("the memo has no entry {index}")))
    }

    /// Puts the values from `first` on into the dict or list below them.
    fn fill(&mut self, first: usize) -> Result<(), DecodeError> {
        let (rest, items) = self.stack.split_at(first);
        let container = rest.get(self.floor()..).and_then(<[_]>::last);
        match (container, self.current.1) {
            (Some(&Value::List(owner)), op::APPEND | op::APPENDS) => {
                self.entries.extend(items.iter().map(|item| (owner, Value::None, *item)));
            }
            (Some(&Value::Dict(owner)), op::SETITEM | op::SETITEMS) if items.len().is_multiple_of(2) => {
                self.entries.extend(items.chunks_exact(2).map(|pair| (owner, pair[0], pair[1])));
            }
            _ => return Err(self.refused("a list takes items, a dict keys and values".into())),
        }
        self.stack.truncate(first);
        Ok(())
    }

    fn owner(&mut self) -> Owner {
        self.owners += 1;
        Owner(self.owners)
    }

    /// The tuple of the topmost `len` values.
    fn tuple(&mut self, len: usize) -> Result<Value<'a>, DecodeError> {
        if len > MAX_DIMS {
            return Err(self.refused(format!("a tuple of {len} is over the limit of {MAX_DIMS}")));
        }
        let (start, first) = (self.members.len(), self.below(len)?);
        self.members.extend(self.stack.drain(first..));
        Ok(Value::Tuple(Span { start, len }))
    }

    fn global(&self, module: &str, name: &str) -> Result<Value<'a>, DecodeError> {
        if module.len().max(name.len()) > NAME_BYTES_MAX {
            return Err(self.long_name());
        }
        let global = Global::named(module, name).filter(|global| global.kinds().overlap(self.kinds));
        let unknown = || self.refused(format!("the global {:?} is not allowed", format!("{module}.{name}")));
        global.map(Value::Global).ok_or_else(unknown)
    }

    /// A line without its end.
    fn line(&mut self) -> Result<&'a str, DecodeError> {
        let rest = self.message.get(self.position..).unwrap_or_default();
        let near = rest.get(..=NAME_BYTES_MAX).unwrap_or(rest);
        let Some(length) = near.iter().position(|byte| *byte == b'\n') else {
            return Err(if near.len() > NAME_BYTES_MAX { self.long_name() } else { DecodeError::Truncated });
        };
        let line = self.take(length + 1)?;
        str::from_utf8(&line[..length]).map_err(|_| self.refused("not utf-8".into()))
    }

    /// Where the topmost `count` values begin; a mark is not passed.
    fn below(&self, count: usize) -> Result<usize, DecodeError> {
        let first = self.stack.len().checked_sub(count).filter(|first| *first >= self.floor());
        first.ok_or_else(|| self.refused(format!("{count} values are needed, the stack has fewer")))
    }

    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn pop<const N: usize>(&mut self) -> Result<[Value<'a>; N], DecodeError> {
        let mut values = [Value::None; N];
        for (value, popped) in values.iter_mut().zip(self.stack.drain(self.below(N)?..)) {
            *value = popped;
        }
        Ok(values)
    }

    /// Takes away the last mark: where the values above it begin.
    fn unmark(&mut self) -> Result<usize, DecodeError> {
        self.marks.pop().ok_or_else(|| self.refused("there is no mark".into()))
    }

    /// A length of `N` bytes.
    fn length<const N: usize>(&mut self) -> Result<usize, DecodeError> {
        let mut wide = [0; 8];
        wide[..N].copy_from_slice(self.take(N)?);
        // What does not fit is more than there can be.
        usize::try_from(u64::from_le_bytes(wide)).map_err(|_| DecodeError::Truncated)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let bytes = self.take(N)?;
        bytes.try_into().map_err(|_| DecodeError::Truncated)
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], DecodeError> {
        let rest = self.message.get(self.position..).unwrap_or_default();
        let taken = rest.get(..count).ok_or(DecodeError::Truncated)?;
        self.position += count;
        Ok(taken)
    }

    fn long_name(&self) -> DecodeError {
        self.refused(format!("a name over the limit of {NAME_BYTES_MAX} bytes"))
    }

    fn refused(&self, fault: String) -> DecodeError {
        let (offset, opcode) = self.current;
        DecodeError::Pickle { offset, opcode, fault }
    }
}

/// An integer in two's complement.
fn long(bytes: &[u8]) -> Value<'_> {
    if bytes.len() > size_of::<i64>() {
        return Value::Long(bytes);
    }
    let negative = bytes.last().is_some_and(|byte| byte >> 7 == 1);
    let mut wide = [if negative { 0xff } else { 0 }; size_of::<i64>()];
    wide[..bytes.len()].copy_from_slice(bytes);
    Value::Int(i64::from_le_bytes(wide))
}
