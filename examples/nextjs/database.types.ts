
export type Json = string | number | boolean | null | { [key: string]: Json | undefined } | Json[]

export type Database = {
  
  "clerk": {
          Tables: {
            "organization_memberships": {
                  Row: {
                    "created_at": string,"id": string,"organization_id": string,"permissions": (string)[],"public_metadata": Json | null,"role": string,"updated_at": string,"user_id": string
                  }
                  ComputedFields: never
                  Insert: {
                    "created_at": string,"id": string,"organization_id": string,"permissions": (string)[],"public_metadata"?: Json | null,"role": string,"updated_at": string,"user_id": string
                  }
                  Update: {
                    "created_at"?: string,"id"?: string,"organization_id"?: string,"permissions"?: (string)[],"public_metadata"?: Json | null,"role"?: string,"updated_at"?: string,"user_id"?: string
                  }
                  Relationships: [
                    {
      foreignKeyName: "organization_memberships_organization_id_fkey"
      columns: ["organization_id"]
isOneToOne: false
      referencedRelation: "organizations"
      referencedColumns: ["id"]
    },{
      foreignKeyName: "organization_memberships_user_id_fkey"
      columns: ["user_id"]
isOneToOne: false
      referencedRelation: "users"
      referencedColumns: ["id"]
    }
                  ]
                },"organizations": {
                  Row: {
                    "created_at": string | null,"deleted_at": string | null,"has_image": boolean | null,"id": string,"image_url": string | null,"max_allowed_memberships": number | null,"name": string | null,"public_metadata": Json | null,"slug": string | null,"updated_at": string | null
                  }
                  ComputedFields: never
                  Insert: {
                    "created_at"?: string | null,"deleted_at"?: string | null,"has_image"?: boolean | null,"id": string,"image_url"?: string | null,"max_allowed_memberships"?: number | null,"name"?: string | null,"public_metadata"?: Json | null,"slug"?: string | null,"updated_at"?: string | null
                  }
                  Update: {
                    "created_at"?: string | null,"deleted_at"?: string | null,"has_image"?: boolean | null,"id"?: string,"image_url"?: string | null,"max_allowed_memberships"?: number | null,"name"?: string | null,"public_metadata"?: Json | null,"slug"?: string | null,"updated_at"?: string | null
                  }
                  Relationships: [
                    
                  ]
                },"user_details": {
                  Row: {
                    "banned": boolean | null,"created_at": string | null,"deprovisioned": boolean | null,"email_address": string | null,"email_address_verified": boolean | null,"external_id": string | null,"id": string,"locked": boolean | null,"phone_number": string | null,"phone_number_verified": boolean | null,"public_metadata": Json | null,"unsafe_metadata": Json | null,"updated_at": string | null
                  }
                  ComputedFields: never
                  Insert: {
                    "banned"?: boolean | null,"created_at"?: string | null,"deprovisioned"?: boolean | null,"email_address"?: string | null,"email_address_verified"?: boolean | null,"external_id"?: string | null,"id": string,"locked"?: boolean | null,"phone_number"?: string | null,"phone_number_verified"?: boolean | null,"public_metadata"?: Json | null,"unsafe_metadata"?: Json | null,"updated_at"?: string | null
                  }
                  Update: {
                    "banned"?: boolean | null,"created_at"?: string | null,"deprovisioned"?: boolean | null,"email_address"?: string | null,"email_address_verified"?: boolean | null,"external_id"?: string | null,"id"?: string,"locked"?: boolean | null,"phone_number"?: string | null,"phone_number_verified"?: boolean | null,"public_metadata"?: Json | null,"unsafe_metadata"?: Json | null,"updated_at"?: string | null
                  }
                  Relationships: [
                    {
      foreignKeyName: "user_details_id_fkey"
      columns: ["id"]
isOneToOne: true
      referencedRelation: "users"
      referencedColumns: ["id"]
    }
                  ]
                },"users": {
                  Row: {
                    "deleted_at": string | null,"first_name": string | null,"has_image": boolean | null,"id": string,"image_url": string | null,"last_name": string | null,"username": string | null
                  }
                  ComputedFields: never
                  Insert: {
                    "deleted_at"?: string | null,"first_name"?: string | null,"has_image"?: boolean | null,"id": string,"image_url"?: string | null,"last_name"?: string | null,"username"?: string | null
                  }
                  Update: {
                    "deleted_at"?: string | null,"first_name"?: string | null,"has_image"?: boolean | null,"id"?: string,"image_url"?: string | null,"last_name"?: string | null,"username"?: string | null
                  }
                  Relationships: [
                    
                  ]
                }
          }
          Views: {
            [_ in never]: never
          }
          Functions: {
            [_ in never]: never
          }
          Enums: {
            [_ in never]: never
          }
          CompositeTypes: {
            [_ in never]: never
          }
        },"public": {
          Tables: {
            "documents": {
                  Row: {
                    "author_id": string,"created_at": string,"id": number,"organization_id": string,"title": string
                  }
                  ComputedFields: never
                  Insert: {
                    "author_id": string,"created_at"?: string,"id"?: never,"organization_id": string,"title": string
                  }
                  Update: {
                    "author_id"?: string,"created_at"?: string,"id"?: never,"organization_id"?: string,"title"?: string
                  }
                  Relationships: [
                    
                  ]
                }
          }
          Views: {
            [_ in never]: never
          }
          Functions: {
            [_ in never]: never
          }
          Enums: {
            [_ in never]: never
          }
          CompositeTypes: {
            [_ in never]: never
          }
        }
}

type DatabaseWithoutInternals = Omit<Database, '__InternalSupabase'>

type DefaultSchema = DatabaseWithoutInternals[Extract<keyof Database, "public">]

export type Tables<
  DefaultSchemaTableNameOrOptions extends
    | keyof (DefaultSchema["Tables"] & DefaultSchema["Views"])
    | { schema: keyof DatabaseWithoutInternals },
  TableName extends DefaultSchemaTableNameOrOptions extends {
    schema: keyof DatabaseWithoutInternals
  }
    ? keyof (DatabaseWithoutInternals[DefaultSchemaTableNameOrOptions["schema"]]["Tables"] &
        DatabaseWithoutInternals[DefaultSchemaTableNameOrOptions["schema"]]["Views"])
    : never = never
> = DefaultSchemaTableNameOrOptions extends { schema: keyof DatabaseWithoutInternals }
  ? (DatabaseWithoutInternals[DefaultSchemaTableNameOrOptions["schema"]]["Tables"] &
      DatabaseWithoutInternals[DefaultSchemaTableNameOrOptions["schema"]]["Views"])[TableName] extends {
      Row: infer R
    }
    ? R
    : never
  : DefaultSchemaTableNameOrOptions extends keyof (DefaultSchema["Tables"] & DefaultSchema["Views"])
  ? (DefaultSchema["Tables"] & DefaultSchema["Views"])[DefaultSchemaTableNameOrOptions] extends {
      Row: infer R
    }
    ? R
    : never
  : never

export type TablesInsert<
  DefaultSchemaTableNameOrOptions extends
    | keyof DefaultSchema["Tables"]
    | { schema: keyof DatabaseWithoutInternals },
  TableName extends DefaultSchemaTableNameOrOptions extends {
    schema: keyof DatabaseWithoutInternals
  }
    ? keyof DatabaseWithoutInternals[DefaultSchemaTableNameOrOptions["schema"]]["Tables"]
    : never = never
> = DefaultSchemaTableNameOrOptions extends { schema: keyof DatabaseWithoutInternals }
  ? DatabaseWithoutInternals[DefaultSchemaTableNameOrOptions["schema"]]["Tables"][TableName] extends {
      Insert: infer I
    }
    ? I
    : never
  : DefaultSchemaTableNameOrOptions extends keyof DefaultSchema["Tables"]
  ? DefaultSchema["Tables"][DefaultSchemaTableNameOrOptions] extends {
      Insert: infer I
    }
    ? I
    : never
  : never

export type TablesUpdate<
  DefaultSchemaTableNameOrOptions extends
    | keyof DefaultSchema["Tables"]
    | { schema: keyof DatabaseWithoutInternals },
  TableName extends DefaultSchemaTableNameOrOptions extends {
    schema: keyof DatabaseWithoutInternals
  }
    ? keyof DatabaseWithoutInternals[DefaultSchemaTableNameOrOptions["schema"]]["Tables"]
    : never = never
> = DefaultSchemaTableNameOrOptions extends { schema: keyof DatabaseWithoutInternals }
  ? DatabaseWithoutInternals[DefaultSchemaTableNameOrOptions["schema"]]["Tables"][TableName] extends {
      Update: infer U
    }
    ? U
    : never
  : DefaultSchemaTableNameOrOptions extends keyof DefaultSchema["Tables"]
  ? DefaultSchema["Tables"][DefaultSchemaTableNameOrOptions] extends {
      Update: infer U
    }
    ? U
    : never
  : never

export type Enums<
  DefaultSchemaEnumNameOrOptions extends
    | keyof DefaultSchema["Enums"]
    | { schema: keyof DatabaseWithoutInternals },
  EnumName extends DefaultSchemaEnumNameOrOptions extends {
    schema: keyof DatabaseWithoutInternals
  }
    ? keyof DatabaseWithoutInternals[DefaultSchemaEnumNameOrOptions["schema"]]["Enums"]
    : never = never
> = DefaultSchemaEnumNameOrOptions extends { schema: keyof DatabaseWithoutInternals }
  ? DatabaseWithoutInternals[DefaultSchemaEnumNameOrOptions["schema"]]["Enums"][EnumName]
  : DefaultSchemaEnumNameOrOptions extends keyof DefaultSchema["Enums"]
  ? DefaultSchema["Enums"][DefaultSchemaEnumNameOrOptions]
  : never

export type CompositeTypes<
  PublicCompositeTypeNameOrOptions extends
    | keyof DefaultSchema["CompositeTypes"]
    | { schema: keyof DatabaseWithoutInternals },
  CompositeTypeName extends PublicCompositeTypeNameOrOptions extends {
    schema: keyof DatabaseWithoutInternals
  }
    ? keyof DatabaseWithoutInternals[PublicCompositeTypeNameOrOptions["schema"]]["CompositeTypes"]
    : never = never
> = PublicCompositeTypeNameOrOptions extends { schema: keyof DatabaseWithoutInternals }
  ? DatabaseWithoutInternals[PublicCompositeTypeNameOrOptions["schema"]]["CompositeTypes"][CompositeTypeName]
  : PublicCompositeTypeNameOrOptions extends keyof DefaultSchema["CompositeTypes"]
  ? DefaultSchema["CompositeTypes"][PublicCompositeTypeNameOrOptions]
  : never

export const Constants = {
  "clerk": {
          Enums: {
            
          }
        },"public": {
          Enums: {
            
          }
        }
} as const
