"""What every table shares: names of constraints, and which column a Python type means."""

import re
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy import CheckConstraint, MetaData
from sqlalchemy.orm import DeclarativeBase, declared_attr

NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}


class UtcTime(sa.types.TypeDecorator[datetime]):
    """A moment in UTC; SQLite forgets the zone, so it is put back on the way out."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        """Refuse a time without a zone, and store UTC."""
        if value is not None and value.tzinfo is None:
            raise ValueError("a time without a zone")
        return value.astimezone(UTC) if value is not None else None

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        """Return the moment with its zone."""
        return value.replace(tzinfo=UTC) if value and value.tzinfo is None else value


def one_of(column: str, *words: str) -> CheckConstraint:
    """Return the constraint that a column holds one of these words."""
    return CheckConstraint(f"{column} IN ({', '.join(map(repr, words))})", name=column)


class Table(DeclarativeBase):
    """What every table shares: its name, named constraints, Python types that mean column types."""

    metadata = MetaData(naming_convention=NAMING)
    type_annotation_map = {  # noqa: RUF012 (SQLAlchemy reads it from the class)
        datetime: UtcTime,
        dict[str, Any]: sa.JSON,
        list[Any]: sa.JSON,
        int: sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
        bytes: sa.LargeBinary,
    }

    @declared_attr.directive
    def __tablename__(cls) -> str:  # noqa: N805 (a directive is called with the class)
        """Return the class's name as SQL writes it: `CanarySet` lies in `canary_set`."""
        return re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower()

    def shown(self, names: str) -> dict[str, Any]:
        """Return the columns with these names."""
        return {name: getattr(self, name) for name in names.split()}
