//! Calls as files: JSON Lines, and Parquet for data frames. Both have the columns of docs/calls.md.

use std::io::{self, Write};

use parquet::{
    basic::Compression,
    data_type::{BoolType, ByteArray, ByteArrayType, Int64Type},
    errors::ParquetError,
    file::{
        properties::WriterProperties,
        writer::{SerializedColumnWriter, SerializedFileWriter},
    },
    schema::parser::parse_message_type,
};
use serde::Serialize;

use crate::record::CallRow;

/// Rows of one row group: a reader takes one at a time.
const GROUP_ROWS: usize = 20_000;

/// A call as it is exported.
#[derive(Debug, Serialize)]
pub struct Exported<'r> {
    #[serde(flatten)]
    row: &'r CallRow,
    /// The same as `cost_nanousd`, as decimal text.
    cost_usd: String,
}

impl<'r> From<&'r CallRow> for Exported<'r> {
    fn from(row: &'r CallRow) -> Exported<'r> {
        Exported { row, cost_usd: row.cost_usd() }
    }
}

/// Writes one call as a line of JSON.
///
/// # Errors
/// When `out` cannot be written.
pub fn write_json_line(row: &CallRow, out: &mut impl Write) -> io::Result<()> {
    serde_json::to_writer(&mut *out, &Exported::from(row))?;
    out.write_all(b"\n")
}

/// What a column holds of a call.
enum Column {
    Text(fn(&CallRow) -> &str),
    MaybeText(fn(&CallRow) -> Option<&str>),
    /// JSON of a list or map.
    Json(fn(&CallRow) -> String),
    Integer(fn(&CallRow) -> u64),
    MaybeInteger(fn(&CallRow) -> Option<u64>),
    Flag(fn(&CallRow) -> bool),
    /// Milliseconds since 1970.
    Time(fn(&CallRow) -> u64),
}

/// The columns of a Parquet file, in order.
const COLUMNS: [(&str, Column); 40] = [
    ("id", Column::Text(|row| &row.id)),
    ("received_ms", Column::Time(|row| row.received_ms)),
    ("endpoint", Column::Text(|row| &row.endpoint)),
    ("key", Column::Text(|row| &row.key)),
    ("team", Column::MaybeText(|row| row.team.as_deref())),
    ("user", Column::Text(|row| &row.user)),
    ("session", Column::MaybeText(|row| row.session.as_deref())),
    ("tags", Column::Json(|row| json(&row.tags))),
    ("model", Column::Text(|row| &row.model)),
    ("named", Column::MaybeText(|row| row.named.as_deref())),
    ("version", Column::MaybeText(|row| row.version.as_deref())),
    ("variants", Column::Json(|row| json(&row.variants))),
    ("prompt", Column::MaybeText(|row| row.prompt.as_deref())),
    ("provider", Column::Text(|row| &row.provider)),
    ("target", Column::MaybeText(|row| row.target.as_deref())),
    ("status", Column::Integer(|row| row.status.into())),
    ("outcome", Column::Text(|row| row.outcome.label())),
    ("refusal", Column::MaybeText(|row| row.refusal.as_deref())),
    ("streamed", Column::Flag(|row| row.streamed)),
    ("input_tokens", Column::Integer(|row| row.input_tokens)),
    ("cached_tokens", Column::Integer(|row| row.cached_tokens)),
    ("cache_write_tokens", Column::Integer(|row| row.cache_write_tokens)),
    ("cache_write_1h_tokens", Column::Integer(|row| row.cache_write_1h_tokens)),
    ("input_audio_tokens", Column::Integer(|row| row.input_audio_tokens)),
    ("cached_audio_tokens", Column::Integer(|row| row.cached_audio_tokens)),
    ("output_tokens", Column::Integer(|row| row.output_tokens)),
    ("reasoning_tokens", Column::Integer(|row| row.reasoning_tokens)),
    ("output_audio_tokens", Column::Integer(|row| row.output_audio_tokens)),
    ("usage_source", Column::Text(|row| row.usage_source.label())),
    ("cost_nanousd", Column::Integer(|row| row.cost_nanousd)),
    ("priced", Column::Flag(|row| row.priced)),
    ("prices", Column::MaybeText(|row| row.prices.as_deref())),
    ("attempts", Column::Integer(|row| row.attempts.into())),
    ("attempt_list", Column::Json(|row| json(&row.attempt_list))),
    ("read_us", Column::Integer(|row| row.read_us)),
    ("waited_us", Column::Integer(|row| row.waited_us)),
    ("overhead_us", Column::MaybeInteger(|row| row.overhead_us)),
    ("first_token_us", Column::MaybeInteger(|row| row.first_token_us)),
    ("duration_us", Column::Integer(|row| row.duration_us)),
    ("cost_usd", Column::Json(CallRow::cost_usd)),
];

/// Writes a Parquet file, a row group at a time.
pub struct ParquetWriter<W: Write + Send> {
    file: SerializedFileWriter<W>,
    rows: Vec<CallRow>,
}

impl<W: Write + Send> ParquetWriter<W> {
    /// Begins a file.
    ///
    /// # Errors
    /// When `out` cannot be written.
    pub fn new(out: W) -> Result<ParquetWriter<W>, ParquetError> {
        let fields: Vec<String> = COLUMNS.iter().map(|(name, column)| column.field(name)).collect();
        let schema = parse_message_type(&format!("message calls {{ {} }}", fields.join(" ")))?;
        let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
        Ok(ParquetWriter { file: SerializedFileWriter::new(out, schema.into(), properties.into())?, rows: Vec::new() })
    }

    /// Adds a call.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn add(&mut self, row: CallRow) -> Result<(), ParquetError> {
        self.rows.push(row);
        if self.rows.len() >= GROUP_ROWS { self.write_group() } else { Ok(()) }
    }

    /// Ends the file.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn finish(mut self) -> Result<(), ParquetError> {
        if !self.rows.is_empty() {
            self.write_group()?;
        }
        Ok(self.file.into_inner()?.flush()?)
    }

    fn write_group(&mut self) -> Result<(), ParquetError> {
        let mut group = self.file.next_row_group()?;
        for (_, column) in &COLUMNS {
            let mut writer = group.next_column()?.expect("the schema has as many columns");
            column.write(&self.rows, &mut writer)?;
            writer.close()?;
        }
        group.close()?;
        self.rows.clear();
        Ok(())
    }
}

impl Column {
    /// The column in Parquet's schema language.
    fn field(&self, name: &str) -> String {
        match self {
            Column::Text(_) | Column::Json(_) => format!("REQUIRED BYTE_ARRAY {name} (UTF8);"),
            Column::MaybeText(_) => format!("OPTIONAL BYTE_ARRAY {name} (UTF8);"),
            Column::Integer(_) => format!("REQUIRED INT64 {name};"),
            Column::MaybeInteger(_) => format!("OPTIONAL INT64 {name};"),
            Column::Flag(_) => format!("REQUIRED BOOLEAN {name};"),
            Column::Time(_) => format!("REQUIRED INT64 {name} (TIMESTAMP_MILLIS);"),
        }
    }

    fn write(&self, rows: &[CallRow], writer: &mut SerializedColumnWriter<'_>) -> Result<(), ParquetError> {
        let text = |text: &str| ByteArray::from(text.as_bytes().to_vec());
        let integer = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        match self {
            Column::Text(get) => {
                let values: Vec<ByteArray> = rows.iter().map(|row| text(get(row))).collect();
                writer.typed::<ByteArrayType>().write_batch(&values, None, None)?;
            }
            Column::Json(get) => {
                let values: Vec<ByteArray> = rows.iter().map(|row| text(&get(row))).collect();
                writer.typed::<ByteArrayType>().write_batch(&values, None, None)?;
            }
            Column::MaybeText(get) => {
                let values: Vec<ByteArray> = rows.iter().filter_map(get).map(text).collect();
                let there: Vec<i16> = rows.iter().map(|row| get(row).is_some().into()).collect();
                writer.typed::<ByteArrayType>().write_batch(&values, Some(&there), None)?;
            }
            Column::Integer(get) | Column::Time(get) => {
                let values: Vec<i64> = rows.iter().map(|row| integer(get(row))).collect();
                writer.typed::<Int64Type>().write_batch(&values, None, None)?;
            }
            Column::MaybeInteger(get) => {
                let values: Vec<i64> = rows.iter().filter_map(get).map(integer).collect();
                let there: Vec<i16> = rows.iter().map(|row| get(row).is_some().into()).collect();
                writer.typed::<Int64Type>().write_batch(&values, Some(&there), None)?;
            }
            Column::Flag(get) => {
                let values: Vec<bool> = rows.iter().map(get).collect();
                writer.typed::<BoolType>().write_batch(&values, None, None)?;
            }
        }
        Ok(())
    }
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("names and numbers: always JSON")
}

#[cfg(test)]
mod tests {
    use parquet::file::reader::{FileReader, SerializedFileReader};
    use serde_json::Value;

    use super::*;
    use crate::store::records::contract::{BEGIN_MS, bare_row, row};

    fn exported(row: &CallRow) -> Value {
        let mut line = Vec::new();
        write_json_line(row, &mut line).unwrap();
        serde_json::from_slice(&line).unwrap()
    }

    #[test]
    fn a_json_line_is_the_call_with_its_cost_as_text() {
        let json = exported(&row(BEGIN_MS, 1));
        assert_eq!((&json["cost_nanousd"], &json["cost_usd"]), (&184_000.into(), &"0.000184".into()));
        assert_eq!(serde_json::from_value::<CallRow>(json).unwrap(), row(BEGIN_MS, 1));
    }

    #[test]
    fn both_formats_have_the_same_columns_with_the_same_values() {
        let rows: Vec<CallRow> =
            (0..50).map(|n| if n % 3 == 0 { bare_row(BEGIN_MS + n, n) } else { row(BEGIN_MS + n, n) }).collect();
        let mut bytes = Vec::new();
        let mut writer = ParquetWriter::new(&mut bytes).unwrap();
        rows.iter().for_each(|row| writer.add(row.clone()).unwrap());
        writer.finish().unwrap();

        let reader = SerializedFileReader::new(bytes::Bytes::from(bytes)).unwrap();
        let mut count = 0;
        for (read, row) in reader.get_row_iter(None).unwrap().zip(&rows) {
            let read = read.unwrap();
            let json = exported(row);
            let names: Vec<&String> = read.get_column_iter().map(|(name, _)| name).collect();
            assert_eq!(names, json.as_object().unwrap().keys().collect::<Vec<_>>());
            for (name, field) in read.get_column_iter() {
                assert_eq!(plain(name, field), json[name], "{name}");
            }
            count += 1;
        }
        assert_eq!(count, rows.len());
    }

    fn plain(name: &str, field: &parquet::record::Field) -> Value {
        use parquet::record::Field;
        match field {
            Field::Null => Value::Null,
            Field::Bool(flag) => (*flag).into(),
            Field::Long(number) | Field::TimestampMillis(number) => (*number).into(),
            Field::Str(text) if ["tags", "variants", "attempt_list"].contains(&name) => {
                serde_json::from_str(text).unwrap()
            }
            Field::Str(text) => text.clone().into(),
            other => panic!("{name}: {other:?}"),
        }
    }
}
