//! The example database: customers, their purchases, and the items of the purchases, with indexes and foreign keys.

use rusqlite::{Connection, Result};

const SCHEMA: &str = "
    CREATE TABLE customer (
        id INTEGER PRIMARY KEY,
        email TEXT NOT NULL UNIQUE,
        name TEXT NOT NULL,
        city TEXT NOT NULL
    ) STRICT;
    CREATE TABLE purchase (
        id INTEGER PRIMARY KEY,
        customer INTEGER NOT NULL REFERENCES customer ON DELETE CASCADE,
        placed INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX purchase_customer ON purchase (customer);
    CREATE INDEX purchase_placed ON purchase (placed);
    CREATE TABLE item (
        id INTEGER PRIMARY KEY,
        purchase INTEGER NOT NULL REFERENCES purchase ON DELETE CASCADE,
        product TEXT NOT NULL,
        pieces INTEGER NOT NULL,
        cents INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX item_purchase ON item (purchase);
    CREATE INDEX item_product ON item (product);";

const CUSTOMERS: &str = "
    WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?1)
    INSERT INTO customer SELECT i, 'user' || i || '@example.org', 'Customer ' || i, 'City ' || i * 7 % 89 FROM n";

const PURCHASES: &str = "
    WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?1)
    INSERT INTO purchase SELECT i, 1 + i * 7919 % ?2, 1700000000 + i * 6151 % 31536000 FROM n";

const ITEMS: &str = "
    WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?1)
    INSERT INTO item SELECT i, 1 + i * 104729 % ?2, 'product ' || i * 31 % 1009, 1 + i % 9, 100 + i * 37 % 9900 FROM n";

/// How many rows each table has.
#[derive(Clone, Copy, Debug)]
pub struct Rows {
    /// In `customer`.
    pub customers: u32,
    /// In `purchase`.
    pub purchases: u32,
    /// In `item`.
    pub items: u32,
}

impl Rows {
    /// Distributes `rows` rows to the tables. Each table gets at least one.
    #[must_use]
    pub fn share_out(rows: u32) -> Self {
        let (customers, purchases) = ((rows / 10).max(1), (rows / 10 * 3).max(1));
        Self { customers, purchases, items: rows.saturating_sub(customers + purchases).max(1) }
    }

    /// Creates the tables and fills them, with the same content each time.
    ///
    /// # Errors
    ///
    /// Returns errors of SQLite, for example if the database does not have enough space.
    pub fn create(self, sql: &Connection) -> Result<()> {
        let transaction = sql.unchecked_transaction()?;
        sql.execute_batch(SCHEMA)?;
        sql.execute(CUSTOMERS, [self.customers])?;
        sql.execute(PURCHASES, [self.purchases, self.customers])?;
        sql.execute(ITEMS, [self.items, self.purchases])?;
        transaction.commit()
    }
}

/// Adds purchases of the first customer, with one item each, in one transaction.
///
/// # Errors
///
/// Returns errors of SQLite.
pub fn buy(sql: &Connection, purchases: u32) -> Result<()> {
    let transaction = sql.unchecked_transaction()?;
    let mut purchase = sql.prepare_cached("INSERT INTO purchase (customer, placed) VALUES (1, ?1)")?;
    let mut item = sql
        .prepare_cached("INSERT INTO item (purchase, product, pieces, cents) VALUES (?1, 'book', 1, 999)")?;
    for number in 0..purchases {
        let purchase = purchase.insert([1_800_000_000 + i64::from(number)])?;
        item.execute([purchase])?;
    }
    transaction.commit()
}

/// A change of the database that is undone later.
#[derive(Clone, Copy, Debug)]
pub enum Change {
    /// This many items, distributed over the table, get another product, which is indexed, and another number of pieces.
    Items(u32),
    /// The table of all items is dropped.
    DropTable,
}

impl Change {
    /// Changes a database that has these `rows`. The caller begins and ends the transaction.
    ///
    /// # Errors
    ///
    /// Returns errors of SQLite.
    pub fn make(self, sql: &Connection, rows: Rows) -> Result<()> {
        match self {
            Self::Items(count) => {
                let update = "UPDATE item SET product = 'changed ' || id, pieces = pieces + 1 WHERE id = ?1";
                let mut update = sql.prepare_cached(update)?;
                // Steps of a large prime make the changed items far apart.
                (0..count.min(rows.items)).try_for_each(|number| {
                    update.execute([1 + i64::from(number) * 7919 % i64::from(rows.items)]).map(drop)
                })
            }
            Self::DropTable => sql.execute_batch("DROP TABLE item"),
        }
    }
}

/// Returns the customer of the first purchase and its price.
///
/// # Errors
///
/// Returns errors of SQLite.
pub fn first_bill(sql: &Connection) -> Result<(String, i64)> {
    let mut query = sql.prepare_cached(
        "SELECT customer.name, sum(item.pieces * item.cents) FROM purchase
         JOIN customer ON customer.id = purchase.customer JOIN item ON item.purchase = purchase.id
         WHERE purchase.id = 1",
    )?;
    query.query_row([], |row| Ok((row.get(0)?, row.get(1)?)))
}

/// Returns the numbers of customers, purchases and items.
///
/// # Errors
///
/// Returns errors of SQLite.
pub fn count(sql: &Connection) -> Result<[u32; 3]> {
    let count = "SELECT (SELECT count(*) FROM customer), (SELECT count(*) FROM purchase), (SELECT count(*) FROM item)";
    sql.query_row(count, [], |row| Ok([row.get(0)?, row.get(1)?, row.get(2)?]))
}

/// Checks the database with SQLite. Returns `ok` or a description of the damage.
///
/// # Errors
///
/// Returns errors of SQLite.
pub fn integrity(sql: &Connection) -> Result<String> {
    let orphans: u32 =
        sql.query_row("SELECT count(*) FROM pragma_foreign_key_check", [], |row| row.get(0))?;
    if orphans > 0 {
        return Ok(format!("{orphans} rows refer to rows that do not exist"));
    }
    sql.query_row("PRAGMA integrity_check", [], |row| row.get(0))
}
