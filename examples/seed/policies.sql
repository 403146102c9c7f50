-- Use auth.jwt()->>'sub' for the Clerk user ID
ALTER TABLE documents ENABLE ROW LEVEL SECURITY;

CREATE POLICY "Users see their own documents"
  ON documents FOR SELECT
  USING (auth.jwt()->>'sub' = clerk_user_id);

CREATE POLICY "Users can insert their own documents"
  ON documents FOR INSERT
  WITH CHECK (auth.jwt()->>'sub' = clerk_user_id);

-- Org-scoped RLS policy using JWT claim
CREATE POLICY "Org members see org documents"
  ON documents FOR SELECT
  USING (org_id = (auth.jwt()->>'org_id'));
