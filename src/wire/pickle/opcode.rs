//! The opcodes that are written or read (CPython's `Lib/pickletools.py`), and in which kinds of pickles.

use super::value::Kinds;

pub(super) const PROTO: u8 = 0x80;
pub(super) const FRAME: u8 = 0x95;
pub(super) const STOP: u8 = b'.';
pub(super) const MARK: u8 = b'(';
pub(super) const NONE: u8 = b'N';
pub(super) const NEWTRUE: u8 = 0x88;
pub(super) const NEWFALSE: u8 = 0x89;
pub(super) const BININT1: u8 = b'K';
pub(super) const BININT2: u8 = b'M';
pub(super) const BININT: u8 = b'J';
pub(super) const LONG1: u8 = 0x8a;
pub(super) const SHORT_BINUNICODE: u8 = 0x8c;
pub(super) const BINUNICODE: u8 = b'X';
pub(super) const SHORT_BINBYTES: u8 = b'C';
pub(super) const BINBYTES: u8 = b'B';
pub(super) const BINBYTES8: u8 = 0x8e;
pub(super) const EMPTY_TUPLE: u8 = b')';
pub(super) const TUPLE1: u8 = 0x85;
pub(super) const TUPLE2: u8 = 0x86;
pub(super) const TUPLE3: u8 = 0x87;
pub(super) const TUPLE: u8 = b't';
pub(super) const EMPTY_DICT: u8 = b'}';
pub(super) const SETITEM: u8 = b's';
pub(super) const SETITEMS: u8 = b'u';
pub(super) const EMPTY_LIST: u8 = b']';
pub(super) const APPEND: u8 = b'a';
pub(super) const APPENDS: u8 = b'e';
pub(super) const GLOBAL: u8 = b'c';
pub(super) const STACK_GLOBAL: u8 = 0x93;
pub(super) const REDUCE: u8 = b'R';
pub(super) const BINPERSID: u8 = b'Q';
pub(super) const MEMOIZE: u8 = 0x94;
pub(super) const BINPUT: u8 = b'q';
pub(super) const LONG_BINPUT: u8 = b'r';
pub(super) const BINGET: u8 = b'h';
pub(super) const LONG_BINGET: u8 = b'j';

/// The kinds of pickles that may have this opcode; none for all that are not listed here.
pub(super) const fn kinds(code: u8) -> Option<Kinds> {
    Some(match code {
        FRAME | SHORT_BINUNICODE | EMPTY_TUPLE | TUPLE1 | TUPLE2 | TUPLE3 | STACK_GLOBAL | REDUCE
        | MEMOIZE | LONG_BINPUT | BINGET | LONG_BINGET => Kinds::OBJECT,
        STOP | MARK | NONE | BININT1 | BININT2 | BININT | LONG1 | BINUNICODE | TUPLE | EMPTY_DICT
        | SETITEM | SETITEMS | GLOBAL | BINPUT => Kinds::OBJECT.and(Kinds::STORAGE),
        NEWTRUE | NEWFALSE => Kinds::TENSOR.and(Kinds::STORAGE),
        BINBYTES | BINBYTES8 => Kinds::TENSOR,
        SHORT_BINBYTES => Kinds::TENSOR.and(Kinds::UNIQUE_ID),
        EMPTY_LIST | APPEND | APPENDS | BINPERSID => Kinds::STORAGE,
        _ => return None,
    })
}
