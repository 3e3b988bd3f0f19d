"""An index for the history in the order of the melanoma probability."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    melanoma = "(CASE WHEN abstained THEN '-1'::real ELSE probabilities[4] END) DESC"
    op.create_index("ix_predictions_melanoma", "predictions", ["owner_id", sa.text(melanoma), sa.text("id DESC")])


def downgrade() -> None:
    op.drop_index("ix_predictions_melanoma", "predictions")
