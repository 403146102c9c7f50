//! A batch as the database takes it: arrays of the composite types that `migrations/0004_calls.sql` declares, in Postgres's binary format.
//!
//! (A user costs the database 14 µs to read as JSON, 10 µs as text and 4 µs like this.) The format names types by number, and
//! numbers are each database's own: a session asks for them when it connects.

use super::kinds;
use crate::model::{
    Batch, BatchMessage, DeadLetter, Doubt, Entity, Fence, FoldedChange, InstanceId, Json, Kind, MembershipMention,
    Millis, Mode, OrganizationId, PendingRead, RequestedPass, Row, Stub, UserId,
};
use sqlx::encode::IsNull;
use sqlx::error::BoxDynError;
use sqlx::postgres::types::Oid;
use sqlx::postgres::{PgArgumentBuffer, PgTypeInfo};
use sqlx::{Encode, Postgres, Type};
use std::collections::HashMap;

/// How many parameters a batch has, as [`EncodedBatch::bind`] binds them: each kind has one for its rows, the fourth and those behind it.
const PARAMETERS: usize = 16 + Kind::ALL.len();

/// A statement that takes a batch: in `sql`, `{batch}` stands for it, and `{1}` for the parameter that is bound behind it.
pub(super) fn with_batch(sql: &str) -> String {
    let parameters: Vec<String> = (1..=PARAMETERS).map(|n| format!("${n}")).collect();
    let batch = format!("row({})::clerk_sync.batch_v1", parameters.join(", "));
    let behind = |sql: String, n: usize| sql.replace(&format!("{{{n}}}"), &format!("${}", PARAMETERS + n));
    (1..=4).fold(sql.replace("{batch}", &batch), behind)
}

/// The numbers of a type and of an array of it.
type Numbers = (Oid, Oid);

/// The numbers of our types: those that each batch has, and those of a row of each kind.
#[derive(Clone, Debug)]
pub(super) struct TypeOids {
    each: [Numbers; TypeOids::EACH.len()],
    rows: [Numbers; Kind::ALL.len()],
}

impl TypeOids {
    const EACH: [&str; 9] = [
        "message_v1",
        "deletion_v1",
        "change_v1",
        "stub_v1",
        "membership_mention_v1",
        "pending_read_v1",
        "requested_pass_v1",
        "dead_letter_v1",
        "doubt_v1",
    ];

    /// The names, in the order in which [`TypeOids::new`] takes the numbers.
    pub(super) fn names() -> Vec<&'static str> {
        TypeOids::EACH.into_iter().chain(Kind::ALL.map(|kind| kinds::of(kind).row_type)).collect()
    }

    /// None if some are missing.
    pub(super) fn new(mut found: Vec<Numbers>) -> Option<TypeOids> {
        let rows = found.split_off(found.len().min(TypeOids::EACH.len()));
        Some(TypeOids { each: found.try_into().ok()?, rows: rows.try_into().ok()? })
    }
}

/// The parameters.
pub(super) struct EncodedBatch {
    source: &'static str,
    fence: Option<i64>,
    check_instance: bool,
    lists: Vec<CompositeArray>,
    superseded: Vec<String>,
    doubts: CompositeArray,
    mode: Option<&'static str>,
    refused_by: Vec<Option<String>>,
    lock_wait_ms: Option<i32>,
}

type Query<'q> = sqlx::query::Query<'q, Postgres, sqlx::postgres::PgArguments>;

impl EncodedBatch {
    pub(super) fn of(batch: &Batch<'_>, types: &TypeOids) -> EncodedBatch {
        let [messages, gone, changes, stubs, mentions, reads, passes, letters, doubts] = types.each;
        let mut lists = vec![
            CompositeArray::of(messages, batch.messages.iter(), message),
            CompositeArray::of(gone, batch.deletions.iter(), self::gone),
            CompositeArray::of(changes, numbered(batch), change),
        ];
        lists.extend(Kind::ALL.into_iter().zip(types.rows).map(|(kind, numbers)| {
            let rows = batch.changes.iter().filter(|winner| winner.row.kind() == kind);
            CompositeArray::of(numbers, rows.filter_map(live), |record, (entity, updated_at)| {
                kinds::encode(record, entity, updated_at);
            })
        }));
        lists.extend([
            CompositeArray::of(stubs, batch.stubs.iter(), stub),
            CompositeArray::of(mentions, batch.mentions.iter().copied(), mention),
            CompositeArray::of(reads, batch.pending_reads.iter(), |record, (n, at, read)| {
                self::read(record, *n, *at, read);
            }),
            CompositeArray::of(passes, batch.requested_passes.iter(), pass),
            CompositeArray::of(letters, batch.dead_letters.iter(), |record, (n, letter)| {
                dead_letter(record, *n, letter);
            }),
        ]);
        let doubts = CompositeArray::of(doubts, batch.doubts.iter(), doubt);
        let superseded = batch.superseded.iter().map(|&id| id.to_owned()).collect();
        let (mode, refused_by) = match &batch.mode {
            Mode::Full => (None, Vec::new()),
            Mode::Access => (Some("access"), Vec::new()),
            Mode::Deny(refusal) => (Some("deny"), vec![Some(refusal.sqlstate.clone()), refusal.object.clone()]),
        };
        EncodedBatch {
            source: batch.source.as_str(),
            fence: batch.fence.map(|Fence(number)| number),
            check_instance: batch.check_instance,
            lists,
            superseded,
            doubts,
            mode,
            refused_by,
            lock_wait_ms: batch.lock_wait.map(|wait| i32::try_from(wait.as_millis()).unwrap_or(i32::MAX)),
        }
    }

    pub(super) fn bind(self, query: Query<'_>) -> Query<'_> {
        let query = query.bind(self.source).bind(self.fence).bind(self.check_instance);
        let query = self.lists.into_iter().fold(query, Query::bind).bind(self.superseded).bind(self.doubts);
        query.bind(self.mode).bind(self.refused_by).bind(self.lock_wait_ms)
    }
}

/// An array of rows.
struct CompositeArray {
    array: Oid,
    bytes: Vec<u8>,
}

impl CompositeArray {
    fn of<T>(
        (row, array): Numbers,
        items: impl Iterator<Item = T>,
        write: impl Fn(&mut RowEncoder<'_>, T),
    ) -> CompositeArray {
        let mut bytes = Vec::new();
        array_header(&mut bytes, row.0, 1);
        let mut length = 0;
        for item in items {
            length += 1;
            length_prefixed(&mut bytes, |bytes| {
                let fields_at = bytes.len();
                bytes.extend([0; 4]);
                let mut record = RowEncoder { bytes, fields: 0 };
                write(&mut record, item);
                let fields = record.fields;
                bytes[fields_at..fields_at + 4].copy_from_slice(&fields.to_be_bytes());
            });
        }
        if length == 0 {
            bytes.clear();
            array_header(&mut bytes, row.0, 0);
        } else {
            bytes[LENGTH_AT..LENGTH_AT + 4].copy_from_slice(&size(length).to_be_bytes());
        }
        CompositeArray { array, bytes }
    }
}

impl Type<Postgres> for CompositeArray {
    fn type_info() -> PgTypeInfo {
        PgTypeInfo::with_oid(Oid(0)) // each value says which
    }
}

impl Encode<'_, Postgres> for CompositeArray {
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        buffer.extend_from_slice(&self.bytes);
        Ok(IsNull::No)
    }

    fn produces(&self) -> Option<PgTypeInfo> {
        Some(PgTypeInfo::with_oid(self.array))
    }

    fn size_hint(&self) -> usize {
        self.bytes.len()
    }
}

/// Where the head of an array has its length.
const LENGTH_AT: usize = 12;

/// The head of an array of one dimension without nulls.
fn array_header(bytes: &mut Vec<u8>, element: u32, length: usize) {
    let dimensions: i32 = if length == 0 { 0 } else { 1 };
    bytes.extend(dimensions.to_be_bytes());
    bytes.extend(0_i32.to_be_bytes());
    bytes.extend(element.to_be_bytes());
    if length > 0 {
        bytes.extend(size(length).to_be_bytes());
        bytes.extend(1_i32.to_be_bytes());
    }
}

/// What `write` writes, with its length before it.
fn length_prefixed(bytes: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    let length_at = bytes.len();
    bytes.extend([0; 4]);
    write(bytes);
    let length = size(bytes.len() - length_at - 4);
    bytes[length_at..length_at + 4].copy_from_slice(&length.to_be_bytes());
}

/// As the protocol has it. A batch is far smaller than what does not fit.
fn size(length: usize) -> i32 {
    i32::try_from(length).unwrap_or(i32::MAX)
}

/// One row, field by field in the order of its type.
pub(super) struct RowEncoder<'a> {
    bytes: &'a mut Vec<u8>,
    fields: i32,
}

/// Numbers of Postgres's own types, the same everywhere.
const BOOLEAN: u32 = 16;
const BYTES: u32 = 17;
const BIGINT: u32 = 20;
const INTEGER: u32 = 23;
const TEXT: u32 = 25;
const TEXTS: u32 = 1009;
const JSONB: u32 = 3802;

impl RowEncoder<'_> {
    fn field(&mut self, of: u32, write: Option<impl FnOnce(&mut Vec<u8>)>) -> &mut Self {
        self.fields += 1;
        self.bytes.extend(of.to_be_bytes());
        match write {
            Some(write) => length_prefixed(self.bytes, write),
            None => self.bytes.extend((-1_i32).to_be_bytes()),
        }
        self
    }

    pub(super) fn text(&mut self, text: Option<&str>) -> &mut Self {
        self.field(TEXT, text.map(|text| |bytes: &mut Vec<u8>| bytes.extend_from_slice(text.as_bytes())))
    }

    pub(super) fn number(&mut self, number: Option<i64>) -> &mut Self {
        self.field(BIGINT, number.map(|number| move |bytes: &mut Vec<u8>| bytes.extend(number.to_be_bytes())))
    }

    pub(super) fn time(&mut self, at: Option<Millis>) -> &mut Self {
        self.number(at.map(Millis::get))
    }

    /// The place among what was folded.
    fn place(&mut self, n: usize) -> &mut Self {
        self.field(INTEGER, Some(|bytes: &mut Vec<u8>| bytes.extend(size(n).to_be_bytes())))
    }

    fn integer(&mut self, number: i32) -> &mut Self {
        self.field(INTEGER, Some(move |bytes: &mut Vec<u8>| bytes.extend(number.to_be_bytes())))
    }

    pub(super) fn bool(&mut self, value: Option<bool>) -> &mut Self {
        self.field(BOOLEAN, value.map(|value| move |bytes: &mut Vec<u8>| bytes.push(u8::from(value))))
    }

    /// Its format's version, then the text.
    pub(super) fn json(&mut self, json: Option<&str>) -> &mut Self {
        let write = |json: &str, bytes: &mut Vec<u8>| {
            bytes.push(1);
            bytes.extend_from_slice(json.as_bytes());
        };
        self.field(JSONB, json.map(|json| move |bytes: &mut Vec<u8>| write(json, bytes)))
    }

    fn bytes(&mut self, content: &[u8]) -> &mut Self {
        self.field(BYTES, Some(|bytes: &mut Vec<u8>| bytes.extend_from_slice(content)))
    }

    pub(super) fn texts(&mut self, texts: Option<&[String]>) -> &mut Self {
        let write = |texts: &[String], bytes: &mut Vec<u8>| {
            array_header(bytes, TEXT, texts.len());
            for text in texts {
                length_prefixed(bytes, |bytes| bytes.extend_from_slice(text.as_bytes()));
            }
        };
        self.field(TEXTS, texts.map(|texts| move |bytes: &mut Vec<u8>| write(texts, bytes)))
    }
}

fn gone(record: &mut RowEncoder<'_>, winner: &FoldedChange<'_>) {
    record
        .place(winner.n)
        .text(Some(winner.row.kind().as_str()))
        .text(Some(winner.row.id()))
        .time(Some(winner.observed_at));
}

/// Each change with the number of its row among the rows of its kind, from 1.
fn numbered<'a, 'b>(batch: &'a Batch<'b>) -> impl Iterator<Item = (usize, &'a FoldedChange<'b>)> {
    let mut rows = HashMap::new();
    batch.changes.iter().map(move |change| {
        let number = rows.entry(change.row.kind()).or_insert(0);
        *number += 1;
        (*number, change)
    })
}

fn change(record: &mut RowEncoder<'_>, (number, winner): (usize, &FoldedChange<'_>)) {
    let entity = live(winner).map(|(entity, _)| entity);
    let (organization_id, user_id) = entity.and_then(Entity::pair).unzip();
    record
        .place(winner.n)
        .text(Some(winner.row.kind().as_str()))
        .text(Some(winner.row.id()))
        .time(Some(winner.observed_at))
        .time(winner.updated_at)
        .number(winner.content)
        .integer(winner.denial)
        .time(winner.ahead)
        .place(number)
        .text(entity.and_then(Entity::read_reason))
        .text(organization_id.map(OrganizationId::as_str))
        .text(user_id.map(UserId::as_str));
}

/// A row, and Clerk's `updated_at`.
fn live<'a>(winner: &FoldedChange<'a>) -> Option<(&'a Entity, Option<Millis>)> {
    if let Row::Live(entity) = winner.row { Some((entity, winner.updated_at)) } else { None }
}

fn stub(record: &mut RowEncoder<'_>, winner: &FoldedChange<'_>) {
    let (user, organization) = match winner.row {
        Row::Stub(Stub::User(user)) => (Some(user), None),
        Row::Stub(Stub::Organization(organization)) => (None, Some(organization)),
        Row::Live(_) | Row::Gone(_) => (None, None),
    };
    let image = user.map(|row| (&row.image_url, row.has_image));
    let image = image.or_else(|| organization.map(|row| (&row.image_url, row.has_image)));
    record
        .text(Some(winner.row.kind().as_str()))
        .text(Some(winner.row.id()))
        .time(Some(winner.observed_at))
        .number(winner.content)
        .text(image.and_then(|(url, _)| url.as_deref()))
        .bool(image.and_then(|(_, has_image)| has_image))
        .text(user.and_then(|row| row.first_name.as_deref()))
        .text(user.and_then(|row| row.last_name.as_deref()))
        .text(user.and_then(|row| row.username.as_deref()))
        .bool(user.and_then(|row| row.banned))
        .bool(user.and_then(|row| row.deprovisioned))
        .text(organization.and_then(|row| row.name.as_deref()))
        .text(organization.and_then(|row| row.slug.as_deref()))
        .number(organization.and_then(|row| row.max_allowed_memberships))
        .json(organization.and_then(|row| row.public_metadata.as_ref()).map(Json::as_str))
        .time(organization.and_then(|row| row.created_at));
}

fn mention(record: &mut RowEncoder<'_>, (observed_at, mention): (Millis, &MembershipMention)) {
    record.text(Some(mention.organization.id.as_str())).text(Some(mention.user.id.as_str()));
    record.text(Some(mention.membership_id.as_str())).time(Some(mention.created_at)).time(Some(observed_at));
}

fn message(record: &mut RowEncoder<'_>, told: &BatchMessage<'_>) {
    let message = told.message;
    record
        .place(told.n)
        .text(Some(message.id.as_str()))
        .text(Some(&message.body_hash))
        .text(Some(&message.event_type))
        .text(message.entity_id.as_deref())
        .text(message.instance_id.as_ref().map(InstanceId::as_str))
        .time(message.event_at)
        .texts(Some(&message.field_errors))
        .text(told.first_hash);
}

fn read(record: &mut RowEncoder<'_>, n: usize, observed_at: Option<Millis>, read: &PendingRead) {
    record
        .place(n)
        .text(Some(read.kind.as_str()))
        .text(Some(&read.id))
        .text(read.organization_id.as_ref().map(OrganizationId::as_str))
        .text(read.user_id.as_ref().map(UserId::as_str))
        .text(Some(read.reason))
        .time(observed_at)
        .bool(Some(read.reported_deleted));
}

fn pass(record: &mut RowEncoder<'_>, pass: &RequestedPass<'_>) {
    let organization = pass.organization_id.map(OrganizationId::as_str);
    record.place(pass.n).text(Some(pass.kind.as_str())).text(organization).text(Some(pass.reason));
    record.integer(pass.ripe_after.into());
}

fn doubt(record: &mut RowEncoder<'_>, doubt: &Doubt) {
    let (updated_at, observed_at, content) = doubt.event;
    record
        .place(doubt.n)
        .bool(Some(doubt.asks))
        .bool(Some(doubt.in_doubt))
        .time(Some(updated_at))
        .time(Some(observed_at))
        .number(Some(content));
}

fn dead_letter(record: &mut RowEncoder<'_>, n: usize, letter: &DeadLetter) {
    let headers: serde_json::Map<String, serde_json::Value> =
        letter.headers.iter().map(|(name, value)| (name.clone(), value.as_str().into())).collect();
    let headers = serde_json::Value::Object(headers).to_string();
    record.place(n).text(Some(&letter.reason)).json(Some(&headers)).bytes(&letter.body);
}
